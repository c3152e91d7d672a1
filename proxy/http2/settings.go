package http2

import (
	"errors"

	h2 "golang.org/x/net/http2"

	"edge/proxy/exchange"
)

// What a server says of itself: SETTINGS and WINDOW_UPDATE.

type fields = exchange.Fields

// announced is what one SETTINGS frame says; -1 is nothing. Of a value given twice
// the last counts, so that a frame costs one look at the streams.
type announced struct{ streams, window, frame, list int64 }

// parse checks the values (RFC 9113 6.5.2).
func (a *announced) parse(f *h2.SettingsFrame) error {
	*a = announced{-1, -1, -1, -1}
	for i := range f.NumSettings() {
		s := f.Setting(i)
		if err := s.Valid(); err != nil {
			code, _ := errors.AsType[h2.ConnectionError](err) // it is one
			return refuse(h2.ErrCode(code), "invalid value of "+s.ID.String())
		}
		switch v := int64(s.Val); s.ID { //nolint:exhaustive // the others are not for us, or not known
		case h2.SettingEnablePush:
			if v != 0 {
				return refuse(h2.ErrCodeProtocol, "ENABLE_PUSH of a server")
			}
		case h2.SettingMaxConcurrentStreams:
			a.streams = v
		case h2.SettingInitialWindowSize:
			a.window = v
		case h2.SettingMaxFrameSize:
			a.frame = v
		case h2.SettingMaxHeaderListSize:
			a.list = v
		}
	}
	return nil
}

// settings applies a SETTINGS frame.
func (c *conn) settings(f *h2.SettingsFrame) error {
	if err := c.spend(); err != nil {
		return err
	}
	if f.IsAck() {
		c.acked.Store(true)
		return nil
	}
	var a announced
	if err := a.parse(f); err != nil {
		return err
	}
	c.mu.Lock()
	if a.frame >= 0 {
		c.maxFrame = int(a.frame)
	}
	if a.list >= 0 {
		c.maxList = a.list
	}
	overflow := a.window >= 0 && !c.resizeLocked(a.window)
	if c.closing == nil {
		c.answerLocked(appendSettingsAck)
		c.kickLocked()
	}
	c.mu.Unlock()
	if overflow {
		return refuse(h2.ErrCodeFlowControl, "window beyond its bounds")
	}
	if a.streams < 0 && !c.known {
		a.streams = maxStreams
	}
	c.known = true
	if a.streams >= 0 {
		c.client.allow(c, int(min(a.streams, maxStreams)))
	}
	return nil
}

// resizeLocked changes the windows of all streams by as much as the initial one
// changes (RFC 9113 6.9.2).
func (c *conn) resizeLocked(window int64) bool {
	delta := window - c.initial
	c.initial = window
	if delta == 0 {
		return true
	}
	for _, s := range c.streams {
		if !s.sendable.grow(delta) {
			return false
		}
		s.wakeLocked()
	}
	return true
}

// windowUpdate grows a window of ours.
func (c *conn) windowUpdate(f *h2.WindowUpdateFrame) error {
	if err := c.spend(); err != nil {
		return err
	}
	if f.StreamID == 0 {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.sendable.grow(int64(f.Increment)) {
			return refuse(h2.ErrCodeFlowControl, "window beyond its bounds")
		}
		c.wakeBlockedLocked()
		return nil
	}
	s, err := c.find(f.StreamID, false)
	if s == nil {
		return err
	}
	c.mu.Lock()
	ok := s.sendable.grow(int64(f.Increment))
	s.wakeLocked()
	c.mu.Unlock()
	if !ok {
		c.malformed(s, h2.ErrCodeFlowControl, "window beyond its bounds")
	}
	return nil
}

// badUpdate handles an increment of 0, which is the stream's error (RFC 9113
// 6.9); that of the connection the Framer has refused.
func (c *conn) badUpdate(id uint32) error {
	s, err := c.find(id, false)
	if s == nil {
		return err
	}
	c.malformed(s, h2.ErrCodeProtocol, "WINDOW_UPDATE of 0")
	return nil
}

package http2

import (
	"errors"
	"os"

	h2 "golang.org/x/net/http2"
)

// read is the goroutine that reads the connection to its end.
func (c *conn) read() {
	err := c.frames()
	if wrong, ok := errors.AsType[*protocolError](err); ok {
		c.end(failed(err), wrong.code, true)
		return
	}
	c.mu.Lock()
	if c.writeErr != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		err = c.writeErr // which is why reading had to end, see writeAndUnlock
	}
	c.mu.Unlock()
	c.end(failed(err), h2.ErrCodeNo, false)
}

// frames reads frame after frame until something is wrong.
func (c *conn) frames() error {
	for {
		f, err := c.framer.ReadFrameHeader()
		if !c.prefaced && (err == nil || f.Type != 0) {
			if wrong := checkPreface(f); wrong != nil {
				return wrong
			}
			c.prefaced = true
		}
		if err != nil {
			return c.parseError(err)
		}
		c.came.Add(1)
		if f.Type == h2.FrameData {
			err = c.data(f)
		} else {
			err = c.frame(f)
		}
		if err != nil {
			return err
		}
	}
}

// checkPreface looks at the first frame, which must be SETTINGS (RFC 9113 3.4).
func checkPreface(f h2.FrameHeader) error {
	switch {
	case f.Length == 'H'<<16|'T'<<8|'T' && f.Type == 'P' && f.Flags == '/':
		return refuse(h2.ErrCodeProtocol, "the server speaks HTTP/1.1")
	case f.Type != h2.FrameSettings || f.Flags.Has(h2.FlagSettingsAck):
		return refuse(h2.ErrCodeProtocol, "the server does not speak HTTP/2")
	}
	return nil
}

// parseError makes an error of the Framer one of ours.
func (c *conn) parseError(err error) error {
	if errors.Is(err, h2.ErrFrameTooLarge) {
		return refuse(h2.ErrCodeFrameSize, "frame too large")
	}
	if code, ok := errors.AsType[h2.ConnectionError](err); ok {
		reason := "invalid frame"
		if detail := c.framer.ErrorDetail(); detail != nil {
			reason = detail.Error()
		}
		return refuse(h2.ErrCode(code), reason)
	}
	if stream, ok := errors.AsType[h2.StreamError](err); ok {
		return refuse(stream.Code, "invalid frame")
	}
	return err
}

// frame handles any frame but DATA.
func (c *conn) frame(header h2.FrameHeader) error {
	if tooShort(header) {
		return refuse(h2.ErrCodeFrameSize, "frame too short")
	}
	frame, err := c.framer.ReadFrameForHeader(header)
	if err != nil {
		if _, ok := errors.AsType[h2.StreamError](err); ok && header.Type == h2.FrameWindowUpdate {
			return c.badUpdate(header.StreamID)
		}
		return c.parseError(err)
	}
	switch f := frame.(type) {
	case *h2.HeadersFrame:
		return c.headers(f)
	case *h2.ContinuationFrame:
		return c.fragment(f.HeaderBlockFragment(), f.HeadersEnded())
	case *h2.SettingsFrame:
		return c.settings(f)
	case *h2.WindowUpdateFrame:
		return c.windowUpdate(f)
	case *h2.RSTStreamFrame:
		return c.resetByServer(f)
	case *h2.PingFrame:
		return c.ping(f)
	case *h2.GoAwayFrame:
		return c.goneAway(f)
	case *h2.PushPromiseFrame:
		return refuse(h2.ErrCodeProtocol, "PUSH_PROMISE, which is switched off")
	case *h2.PriorityUpdateFrame:
		return refuse(h2.ErrCodeProtocol, "PRIORITY_UPDATE from a server")
	}
	return c.spend() // PRIORITY, and types we do not know (RFC 9113 5.5)
}

// tooShort reports whether a frame lacks what its flags announce, which the Framer
// reports like the end of the connection.
func tooShort(f h2.FrameHeader) bool {
	var least uint32
	if f.Type == h2.FramePushPromise {
		least = 4
	}
	if f.Flags.Has(h2.FlagHeadersPadded) { // that of PUSH_PROMISE is the same
		least++
	}
	if f.Flags.Has(h2.FlagHeadersPriority) {
		least += 5
	}
	return (f.Type == h2.FrameHeaders || f.Type == h2.FramePushPromise) && f.Length < least
}

// spend books a frame that brings nothing. The credit grows with time and with
// frames that do bring something, or that we sent and some of these answer; a
// server that uses it up wastes our time.
func (c *conn) spend() error {
	if c.credit.Add(-1) < 0 {
		return refuse(h2.ErrCodeEnhanceYourCalm, "too many frames that bring nothing")
	}
	return nil
}

// earn gives credit for n frames.
func (c *conn) earn(n int64) {
	if left := floodBurst - c.credit.Load(); left > 0 {
		c.credit.Add(min(n, left))
	}
}

// useful books a HEADERS or DATA frame.
func (c *conn) useful() {
	c.earn(1)
	if c.freePings.Load() != resetPing|silencePing {
		c.freePings.Store(resetPing | silencePing)
	}
}

// find returns the stream of a frame, and nil when the frame is to be dropped:
// what came after we have reset a stream, or the server did. strict is for frames
// that the server may not send on a stream that it has ended (RFC 9113 5.1).
func (c *conn) find(id uint32, strict bool) (*stream, error) {
	c.mu.Lock()
	s, next := c.streams[id], c.next
	_, late := c.late[id]
	late = late || id <= c.forgotten
	c.mu.Unlock()
	switch {
	case s != nil:
		return s, nil
	case id%2 == 0 || id >= next:
		return nil, refuse(h2.ErrCodeProtocol, "frame of a stream that is not open")
	case strict && !late:
		return nil, refuse(h2.ErrCodeStreamClosed, "frame of a stream that has ended")
	}
	return nil, nil
}

// data handles a DATA frame. Its payload is read here and not by the Framer, so
// that it is copied once, and passed on as it comes.
func (c *conn) data(f h2.FrameHeader) error {
	if f.StreamID == 0 {
		return refuse(h2.ErrCodeProtocol, "DATA of stream 0")
	}
	if !c.granted.take(int64(f.Length)) {
		return refuse(h2.ErrCodeFlowControl, "more than the window of the connection")
	}
	s, err := c.find(f.StreamID, true)
	switch {
	case err != nil:
		return err
	case s == nil:
		return c.lateData(f.StreamID, int(f.Length))
	}
	end := f.Flags.Has(h2.FlagDataEndStream)
	n, padding, err := c.padding(f)
	if err != nil {
		return err
	}
	if n > 0 || end {
		c.useful()
	} else if err := c.spend(); err != nil { // padding is nothing
		return err
	}
	if code, malformed := s.expect(int(f.Length), n, end); malformed != "" {
		c.malformed(s, code, malformed)
		end = false
	}
	if err := c.payload(s, n); err != nil {
		return err
	}
	if overhead := int(f.Length) - n; overhead > 0 {
		if _, err := c.br.Discard(padding); err != nil {
			return err
		}
		s.consumed(overhead)
	}
	if end {
		c.ended(s, nil)
	}
	c.giveBack(int(f.Length))
	return nil
}

// padding returns how much of a DATA frame is data, and how much comes behind it
// (RFC 9113 6.1).
func (c *conn) padding(f h2.FrameHeader) (data, padding int, err error) {
	data = int(f.Length)
	if !f.Flags.Has(h2.FlagDataPadded) {
		return data, 0, nil
	}
	if data == 0 {
		return 0, 0, refuse(h2.ErrCodeFrameSize, "frame too short")
	}
	b, err := c.br.ReadByte()
	if err != nil {
		return 0, 0, err
	}
	data--
	if int(b) > data {
		return 0, 0, refuse(h2.ErrCodeProtocol, "more padding than frame")
	}
	return data - int(b), int(b), nil
}

// payload passes n bytes on to the stream, as they come.
func (c *conn) payload(s *stream, n int) error {
	for n > 0 {
		b, err := c.br.Peek(min(n, max(1, c.br.Buffered())))
		if err != nil {
			return err
		}
		s.push(b)
		n -= len(b)
		if _, err := c.br.Discard(len(b)); err != nil {
			return err
		}
	}
	return nil
}

// lateData drops DATA of a stream that we have reset. What the server had the
// right to send is free, so that a chatty stream does not use up the credit of a
// whole connection when it is cancelled.
func (c *conn) lateData(id uint32, length int) error {
	c.mu.Lock()
	left := c.late[id] - int64(length) - frameHeader
	if left >= 0 {
		c.late[id] = left
	}
	c.mu.Unlock()
	if left < 0 {
		if err := c.spend(); err != nil {
			return err
		}
	}
	_, err := c.br.Discard(length)
	c.giveBack(length)
	return err
}

// giveBack opens the window of the connection by n bytes that came.
func (c *conn) giveBack(n int) {
	if more := c.granted.giveBack(int64(n)); more > 0 {
		c.update(nil, more)
	}
}

// update announces a larger window, that of the connection when s is nil.
func (c *conn) update(s *stream, more uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing != nil || s != nil && s.dropped {
		return
	}
	id := uint32(0)
	if s != nil {
		id = s.id
	}
	c.answerLocked(func(b []byte) []byte { return appendWindowUpdate(b, id, more) })
	c.kickLocked()
}

// malformed ends a stream whose reply breaks the rules (RFC 9113 8.1.1).
func (c *conn) malformed(s *stream, code h2.ErrCode, reason string) {
	s.lose(s.lost(invalid(reason)))
	c.drop(s, code)
}

// ended completes a reply. A request that goes on is of no use to anybody then.
func (c *conn) ended(s *stream, trailer fields) {
	s.complete(trailer)
	c.mu.Lock()
	sent := s.sentEnd
	c.mu.Unlock()
	if sent {
		c.drop(s, notReset)
		return
	}
	c.drop(s, h2.ErrCodeNo)
}

// headers begins a field block.
func (c *conn) headers(f *h2.HeadersFrame) error {
	s, err := c.find(f.StreamID, true)
	switch {
	case err != nil:
		return err
	case s != nil:
		s.answered.Store(true)
		c.useful()
	default:
		if err := c.spend(); err != nil {
			return err
		}
	}
	c.blockOf, c.blockID, c.blockEnd = s, f.StreamID, f.StreamEnded()
	c.decoder.begin(s != nil)
	return c.fragment(f.HeaderBlockFragment(), f.HeadersEnded())
}

// fragment takes a part of the block, which the Framer has seen to be of the
// right stream.
func (c *conn) fragment(b []byte, last bool) error {
	err := c.decoder.write(b)
	c.inBlock.Store(!last)
	switch {
	case errors.Is(err, errBlockSize), errors.Is(err, errBlockFrames):
		return refuse(h2.ErrCodeEnhanceYourCalm, err.Error())
	case err != nil:
		return refuse(h2.ErrCodeCompression, "field block cannot be decoded")
	case !last:
		return nil
	}
	if err := c.decoder.end(); err != nil {
		return refuse(h2.ErrCodeCompression, "field block cannot be decoded")
	}
	s := c.blockOf
	c.blockOf = nil
	if s == nil {
		return nil
	}
	trailer, malformed := s.block(c.decoder, c.blockEnd)
	switch {
	case malformed != "":
		c.malformed(s, h2.ErrCodeProtocol, malformed)
	case c.blockEnd:
		c.ended(s, trailer)
	}
	return nil
}

// resetByServer handles RST_STREAM.
func (c *conn) resetByServer(f *h2.RSTStreamFrame) error {
	s, err := c.find(f.StreamID, false)
	if s == nil {
		return errors.Join(err, c.spend())
	}
	loss := s.lost(errors.New("stream reset by the server: " + f.ErrCode.String()))
	loss.Unsent = f.ErrCode == h2.ErrCodeRefusedStream && !loss.Answered
	s.lose(loss)
	c.mu.Lock()
	c.remember(s) // what else it sends is wrong, but no reason to end the others
	c.mu.Unlock()
	c.drop(s, notReset)
	return nil
}

// ping answers a PING, or notes the answer to ours.
func (c *conn) ping(f *h2.PingFrame) error {
	if !f.IsAck() {
		c.mu.Lock()
		if c.closing == nil {
			c.answerLocked(func(b []byte) []byte { return appendPing(b, true, f.Data) })
			c.kickLocked()
		}
		c.mu.Unlock()
		return c.spend()
	}
	c.mu.Lock()
	held := c.answeredLocked() // in order, and one at a time
	c.mu.Unlock()
	c.client.release(c, held)
	return c.spend()
}

// goneAway handles GOAWAY: streams that the server has not seen can be sent again
// elsewhere, the others go on (RFC 9113 6.8). A later one can only say less; one
// that says more changes nothing.
func (c *conn) goneAway(f *h2.GoAwayFrame) error {
	if err := c.spend(); err != nil {
		return err
	}
	c.client.retire(c)
	var unseen []*stream
	c.mu.Lock()
	c.goAway = "GOAWAY " + f.ErrCode.String()
	for id, s := range c.streams {
		if id > f.LastStreamID {
			unseen = append(unseen, s)
			c.remember(s)
		}
	}
	text := c.goAway
	c.mu.Unlock()
	for _, s := range unseen {
		loss := s.lost(errors.New("the server takes no more streams: " + text))
		loss.Unsent = !loss.Answered
		s.lose(loss)
		c.drop(s, notReset)
	}
	c.client.release(c, 0) // closes it when there are no others
	return nil
}

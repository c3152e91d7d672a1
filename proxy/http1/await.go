package http1

import (
	"fmt"
	"time"

	"edge/proxy/exchange"
)

const maxInterim = 8 // replies before the reply

const (
	errInterims malformed = "too many interim replies"
)

// readReply reads heads until that of the reply, and starts an announced body
// when its time has come.
func (c *conn) readReply() (replyHead, error) {
	waiting := c.up != nil && !c.up.started
	for interims := 0; ; {
		h, err := c.readHead()
		if waiting && err != nil && isTimeout(err) {
			waiting = false
			c.startUpload()
			continue
		}
		if err != nil {
			return h, err
		}
		if h.status >= statusOK || h.status == statusSwitching {
			c.begun(h, waiting)
			return h, nil
		}
		if interims++; interims > maxInterim {
			return h, invalid(errInterims)
		}
		if c.call.Interim != nil {
			c.call.Interim(h.status, h.fields)
		}
		switch {
		case !waiting: // a 100 at such a time answers nothing
			c.restart()
		case h.status == statusContinue:
			waiting = false
			c.startUpload()
		}
	}
}

// restart begins the silence of the server anew: an interim reply has broken it.
func (c *conn) restart() {
	limit := c.call.FirstByte
	switch {
	case limit <= 0 || c.sent != nil:
	case c.up != nil:
		c.up.restart(limit)
	default:
		_ = c.nc.SetReadDeadline(time.Now().Add(limit))
	}
}

// begun takes the deadlines away: the head of the reply is there.
func (c *conn) begun(h replyHead, waiting bool) {
	c.keep, c.told = h.keep, h.life
	c.refused = waiting
	switch {
	case c.up != nil && !waiting:
		c.up.head()
	case c.timed:
		_ = c.nc.SetDeadline(time.Time{})
	}
	c.timed = false
}

func invalid(err error) error { return fmt.Errorf("%w: %w", exchange.ErrInvalidReply, err) }

// readHead reads one head. After a timeout it can be called again.
func (c *conn) readHead() (replyHead, error) {
	var scan headScan
	for {
		head := c.buf[c.r:c.w]
		n, err := scan.find(head)
		switch {
		case err != nil:
			return replyHead{}, invalid(err)
		case n == 0 && len(head) >= maxHead:
			return replyHead{}, invalid(errHeadSize)
		case n > 0:
			c.r += n
			h, err := parseReply(string(head[:n]), scan.lines, c.call)
			if err != nil {
				return h, invalid(err)
			}
			if c.r == c.w {
				c.release()
			}
			return h, nil
		case string(head[:min(len(head), len(versionPrefix))]) != versionPrefix[:min(len(head), len(versionPrefix))]:
			return replyHead{}, invalid(errVersion) // which may not have lines at all
		}
		if err := c.fill(); err != nil {
			return replyHead{}, cut(err)
		}
	}
}

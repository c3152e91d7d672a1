package http1

import (
	"slices"
	"time"
)

// graceOfServer is how much earlier than the server we give up an idle
// connection whose life it has told: a request that crosses the FIN is lost.
const graceOfServer = time.Second

// idleLife returns how long the connection may be kept idle after a reply whose
// server said told (below 0: nothing). Servers only make it shorter.
func (c *Client) idleLife(told time.Duration) time.Duration {
	switch {
	case told < 0:
		return c.opts.Idle
	case told <= graceOfServer:
		return min(told/2, c.opts.Idle)
	}
	return min(told-graceOfServer, c.opts.Idle)
}

// Idle is the number of connections that are open and unused.
func (c *Client) Idle() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.idle)
}

// Close closes the idle connections now and those in use at the end of their
// reply. Do works on, for requests that began before: it dials and keeps nothing.
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	idle := c.idle
	c.idle = nil
	if c.timer != nil {
		c.timer.Stop()
	}
	c.wakes = time.Time{}
	c.mu.Unlock()
	closeAll(idle)
}

// closeAll says goodbye to connections that nobody uses.
func closeAll(conns []*conn) {
	for _, cn := range conns {
		cn.close()
	}
}

// pop takes the connection that fell idle last, or returns nil. The others may
// then grow old and be closed, which fits the pool to its use.
func (c *Client) pop() *conn {
	if c.opts.OneShot {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	last := len(c.idle) - 1
	if last < 0 {
		return nil
	}
	cn := c.idle[last]
	c.idle[last] = nil
	c.idle = c.idle[:last]
	return cn
}

// put keeps a connection whose reply is complete, or closes it.
func (c *Client) put(cn *conn) {
	life := c.idleLife(cn.told)
	if life <= 0 || c.opts.OneShot {
		cn.close()
		return
	}
	now := time.Now()
	cn.call, cn.expires = nil, now.Add(life)
	var surplus *conn
	c.mu.Lock()
	switch {
	case c.closed:
		surplus = cn
	case len(c.idle) >= c.opts.MaxIdle:
		surplus = c.idle[0]
		copy(c.idle, c.idle[1:])
		c.idle[len(c.idle)-1] = cn
		c.wakeLocked(life, cn.expires)
	default:
		c.idle = append(c.idle, cn)
		c.wakeLocked(life, cn.expires)
	}
	c.mu.Unlock()
	if surplus != nil {
		surplus.close()
	}
}

// wakeLocked has expire called in time for a connection with that life. The
// timer is not moved for each: it fires once in a life and looks at all.
func (c *Client) wakeLocked(life time.Duration, at time.Time) {
	if !c.wakes.IsZero() && !at.Before(c.wakes) {
		return
	}
	c.wakes = at
	if c.timer == nil {
		c.timer = time.AfterFunc(life, c.expire)
		return
	}
	c.timer.Reset(life)
}

// expire closes the connections whose life is over.
func (c *Client) expire() {
	now := time.Now()
	var old []*conn
	var next time.Time
	c.mu.Lock()
	c.idle = slices.DeleteFunc(c.idle, func(cn *conn) bool {
		if !now.Before(cn.expires) {
			old = append(old, cn)
			return true
		}
		if next.IsZero() || cn.expires.Before(next) {
			next = cn.expires
		}
		return false
	})
	c.wakes = time.Time{}
	if !next.IsZero() && !c.closed {
		c.wakeLocked(next.Sub(now), next)
	}
	c.mu.Unlock()
	closeAll(old)
}

package http2

import "sync/atomic"

// Flow control (RFC 9113 5.2, 6.9): what we grant the server, and what it grants
// us.

// grant is a window that we grant. Any goroutine may give back.
type grant struct {
	left atomic.Int64 // what the server may still send
	owed atomic.Int64 // what was consumed and not announced
	size int64
}

func (g *grant) init(size int64) {
	g.size = size
	g.left.Store(size)
}

// take books n bytes that came and reports whether they were within the window.
func (g *grant) take(n int64) bool { return g.left.Add(-n) >= 0 }

// giveBack books n bytes that were consumed and returns how many to announce now;
// 0 as long as it is less than half of the window, so that announcements are few.
func (g *grant) giveBack(n int64) uint32 {
	if g.owed.Add(n) < g.size/2 {
		return 0
	}
	n = g.owed.Swap(0)
	g.left.Add(n)
	return uint32(n) //nolint:gosec // no more than size
}

// allowance is a window that the server grants. It can be below zero, after the
// server has made the initial window smaller (RFC 9113 6.9.2).
type allowance int64

// grow adds n, which may be negative, and reports whether the window stays within
// its bounds.
func (a *allowance) grow(n int64) bool {
	*a += allowance(n)
	return *a <= maxWindow
}

// fit returns how many of n bytes may be sent on a stream of the connection.
func fit(n int, stream, connection allowance, frame int) int {
	return max(0, min(n, int(stream), int(connection), frame))
}

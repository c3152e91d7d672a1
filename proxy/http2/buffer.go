package http2

import "sync"

// A stream's data waits in chunks of two sizes, which it holds only while there
// is something to read: events take a small one, bulk the large ones.
const (
	smallChunk = 4 << 10
	largeChunk = 16 << 10
)

var (
	smallChunks = sync.Pool{New: func() any { return &chunk{data: make([]byte, smallChunk)} }}
	largeChunks = sync.Pool{New: func() any { return &chunk{data: make([]byte, largeChunk)} }}
)

type chunk struct {
	next *chunk
	r, w int // what is between them is unread
	data []byte
}

// newChunk returns a chunk for n bytes or the first of them.
func newChunk(n int) *chunk {
	pool := &smallChunks
	if n > smallChunk {
		pool = &largeChunks
	}
	return pool.Get().(*chunk) //nolint:forcetypeassert // the pools hold nothing else
}

func (c *chunk) free() {
	c.next, c.r, c.w = nil, 0, 0
	if len(c.data) == smallChunk {
		smallChunks.Put(c)
	} else {
		largeChunks.Put(c)
	}
}

// buffer is a queue of bytes. The zero value is empty.
type buffer struct {
	first, last *chunk
	size        int
}

// write appends a copy of p.
func (b *buffer) write(p []byte) {
	b.size += len(p)
	for len(p) > 0 {
		if b.last == nil || b.last.w == len(b.last.data) {
			c := newChunk(len(p))
			if b.last == nil {
				b.first = c
			} else {
				b.last.next = c
			}
			b.last = c
		}
		n := copy(b.last.data[b.last.w:], p)
		b.last.w += n
		p = p[n:]
	}
}

// read moves what fits into p.
func (b *buffer) read(p []byte) int {
	total := 0
	for len(p) > 0 && b.first != nil {
		c := b.first
		n := copy(p, c.data[c.r:c.w])
		c.r += n
		p = p[n:]
		total += n
		if c.r < c.w {
			break
		}
		b.first = c.next
		if b.first == nil {
			b.last = nil
		}
		c.free()
	}
	b.size -= total
	return total
}

// drop empties the buffer.
func (b *buffer) drop() {
	for c := b.first; c != nil; {
		next := c.next
		c.free()
		c = next
	}
	*b = buffer{}
}

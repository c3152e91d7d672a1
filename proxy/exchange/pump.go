package exchange

import (
	"fmt"
	"io"
	"sync"
)

// Pump copies src to the client with a flush at every read, so that an event
// leaves when it came, then leaves the trailers of src in ReplyTrailer for the
// end. It closes src, once, also when src panics. When src fails, the exchange
// is aborted. Engines call it for detached exchanges; a handler may.
//
// The head goes out before the first read, unless the reply declares its
// length: then body and head can share a packet.
func Pump(e *Exchange, src Source) error {
	defer func() { _ = src.Close() }() // of a body that was read, or is given up
	if err := e.commit(); err != nil {
		return err
	}
	if e.bodiless {
		return nil
	}
	if e.declared < 0 {
		if err := e.Flush(); err != nil {
			return err
		}
	}
	buf := pumpSmall.Get().(*[]byte) //nolint:forcetypeassert // the pools hold nothing else
	defer func() { release(buf) }()
	for {
		e.dog.begin(sourceWait)
		n, err := src.Read(*buf)
		e.dog.end(sourceWait)
		last := err == io.EOF //nolint:errorlint // what breaks a reply may wrap it, the end is never wrapped
		if n > 0 {
			if _, werr := e.send((*buf)[:n], !last); werr != nil {
				return werr
			}
		}
		if last {
			e.ReplyTrailer = append(e.ReplyTrailer, src.Trailer()...)
			return nil
		}
		if err != nil {
			err = fmt.Errorf("read reply: %w", err)
			e.fail(err)
			return err
		}
		buf = fit(buf, n)
	}
}

// A stream that waits for its next token holds a small buffer, a download a
// large one.
const (
	smallSize = 4 << 10
	largeSize = 64 << 10
)

var (
	pumpSmall = sync.Pool{New: func() any { return new(make([]byte, smallSize)) }}
	pumpLarge = sync.Pool{New: func() any { return new(make([]byte, largeSize)) }}
)

// fit returns the buffer for what comes after a read of n bytes into buf.
func fit(buf *[]byte, n int) *[]byte {
	switch {
	case n == smallSize && len(*buf) == smallSize:
		pumpSmall.Put(buf)
		return pumpLarge.Get().(*[]byte) //nolint:forcetypeassert // as above
	case n < smallSize && len(*buf) == largeSize:
		pumpLarge.Put(buf)
		return pumpSmall.Get().(*[]byte) //nolint:forcetypeassert // as above
	}
	return buf
}

func release(buf *[]byte) {
	if len(*buf) == smallSize {
		pumpSmall.Put(buf)
		return
	}
	pumpLarge.Put(buf)
}

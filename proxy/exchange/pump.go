package exchange

import (
	"errors"
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
	buf := pumpBuffers.Get().(*[pumpSize]byte) //nolint:forcetypeassert // the pool holds nothing else
	defer pumpBuffers.Put(buf)
	for {
		n, err := src.Read(buf[:])
		last := errors.Is(err, io.EOF)
		if n > 0 {
			if _, werr := e.send(buf[:n], !last); werr != nil {
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
	}
}

const pumpSize = 32 << 10

var pumpBuffers = sync.Pool{New: func() any { return new([pumpSize]byte) }}

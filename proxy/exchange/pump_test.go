package exchange

import (
	"context"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"
)

// sink is an engine whose client takes everything at once.
type sink struct{ Engine }

func (sink) Commit(int, Fields, int64) error   { return nil }
func (sink) Write(p []byte) (int, error)       { return len(p), nil }
func (sink) Flush() error                      { return nil }
func (sink) Finish(Fields) error               { return nil }
func (sink) Abort()                            {}
func (sink) Context() context.Context          { return context.Background() }
func (sink) SetWriteDeadline(time.Time) error  { return nil }
func (sink) OnLeave(func()) (stop func() bool) { return func() bool { return true } }

// pieces is a reply that arrives in pieces, each as large as it can be read.
type pieces struct {
	sizes []int
	reads []int // what Pump asked for
}

func (s *pieces) Read(p []byte) (int, error) {
	s.reads = append(s.reads, len(p))
	if len(s.sizes) == 0 {
		return 0, io.EOF
	}
	n := min(s.sizes[0], len(p))
	if s.sizes[0] -= n; s.sizes[0] == 0 {
		s.sizes = s.sizes[1:]
	}
	return n, nil
}

func (*pieces) Trailer() Fields { return nil }
func (*pieces) Close() error    { return nil }

func TestPumpHoldsALargeBufferOnlyWhileThereIsMuchToCopy(t *testing.T) {
	src := &pieces{sizes: []int{200, smallSize + largeSize, 300, 200}}
	e := New(sink{})
	if err := Pump(e, src); err != nil {
		t.Fatal(err)
	}
	want := []int{smallSize, smallSize, largeSize, largeSize, smallSize, smallSize}
	if !slices.Equal(src.reads, want) {
		t.Errorf("buffers of %d bytes, want %d", src.reads, want)
	}
	if e.Sent != 200+smallSize+largeSize+300+200 {
		t.Errorf("%d bytes sent", e.Sent)
	}
}

// broken is a reply that breaks off for a reason that is somewhere an io.EOF, as
// that of a request body may be.
type broken struct{ pieces }

func (b *broken) Read(p []byte) (int, error) {
	if n, err := b.pieces.Read(p); err == nil {
		return n, nil
	}
	return 0, fmt.Errorf("lost: %w", io.EOF)
}

func TestOnlyTheEndItselfIsTheEndOfAReply(t *testing.T) {
	e := New(sink{})
	e.Conn = new(Conn)
	clean := e.Serve(func(e *Exchange) { e.Detach(&broken{pieces{sizes: []int{200}}}) })
	if clean || e.Err == nil || e.Sent != 200 {
		t.Errorf("clean %v after %d bytes, %v; want a broken reply", clean, e.Sent, e.Err)
	}
}

// steady is a reply of n reads.
type steady struct{ n, size int }

func (s *steady) Read(p []byte) (int, error) {
	if s.n--; s.n < 0 {
		return 0, io.EOF
	}
	return min(s.size, len(p)), nil
}

func (*steady) Trailer() Fields { return nil }
func (*steady) Close() error    { return nil }

// An event costs no allocation, whatever a stream costs.
func BenchmarkPump(b *testing.B) {
	for name, size := range map[string]int{"event": 200, "bulk": 1 << 20} {
		b.Run(name, func(b *testing.B) {
			e := New(sink{})
			e.SetWriteTimeout(time.Minute)
			b.ReportAllocs()
			src := &steady{n: b.N, size: size}
			b.ResetTimer()
			if err := Pump(e, src); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(e.Sent / int64(max(b.N, 1)))
		})
	}
}

func TestAnEventOfAStreamAllocatesNothing(t *testing.T) {
	const events = 1000
	perStream := func(n int) float64 {
		return testing.AllocsPerRun(20, func() {
			e := New(sink{})
			e.SetWriteTimeout(time.Minute)
			if err := Pump(e, &steady{n: n, size: 200}); err != nil {
				t.Error(err)
			}
		})
	}
	if one, many := perStream(1), perStream(events); many > one+events/100 {
		t.Errorf("%v allocations for a stream of %d events, %v for one event", many, events, one)
	}
}

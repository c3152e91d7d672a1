package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// slowConn counts its writes, each of which waits for a turn.
type slowConn struct {
	net.Conn

	turns  chan struct{}
	writes []int
	all    bytes.Buffer
}

func (c *slowConn) Write(p []byte) (int, error) {
	if _, ok := <-c.turns; !ok {
		return 0, io.ErrClosedPipe
	}
	c.writes = append(c.writes, len(p))
	return c.all.Write(p)
}

func TestBatchWritesTogetherWhatGathersMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &slowConn{turns: make(chan struct{}, 10)}
		b := newBatch(c, func() { t.Error("cut") })
		var want bytes.Buffer
		for i := range 100 {
			frame := bytes.Repeat([]byte{byte(i)}, 300)
			want.Write(frame)
			if n, err := b.Write(frame); n != len(frame) || err != nil {
				t.Fatal(n, err)
			}
			synctest.Wait() // the goroutine is in its first write
		}
		for range 10 {
			c.turns <- struct{}{}
		}
		synctest.Wait()
		if !bytes.Equal(c.all.Bytes(), want.Bytes()) {
			t.Errorf("%d bytes arrived, not the %d written in their order", c.all.Len(), want.Len())
		}
		if got := c.writes; len(got) != 3 || got[0] != 300 || got[1] != batchPiece {
			t.Errorf("writes of %d bytes, want the first frame, a full piece and the rest", got)
		}
		b.close()
	})
}

func TestBatchIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &slowConn{turns: make(chan struct{})}
		b := newBatch(c, func() {})
		var taken atomic.Int64
		go func() {
			for {
				n, err := b.Write(make([]byte, 1000))
				if err != nil {
					return
				}
				taken.Add(int64(n))
			}
		}()
		synctest.Wait()
		if got := taken.Load(); got < batchSize-1000 || got > 2*batchSize {
			t.Errorf("%d bytes taken from a server whose client takes none, want about %d", got, batchSize)
		}
		close(c.turns)
		synctest.Wait()
		if _, err := b.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("got %v after a write that failed, want its error", err)
		}
		b.close()
	})
}

func TestBatchGoroutineEndsWhenThereIsNoTraffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &slowConn{turns: make(chan struct{}, 100)}
		for range 100 {
			c.turns <- struct{}{}
		}
		b := newBatch(c, func() { t.Error("cut") })
		running := func() bool {
			synctest.Wait()
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.gone != nil
		}
		for range 3 {
			for range 5 {
				_, _ = b.Write([]byte("frame"))
				time.Sleep(batchIdle * 9 / 10)
				if !running() {
					t.Fatal("ended while there was traffic")
				}
			}
			time.Sleep(batchIdle)
			if running() {
				t.Fatal("still there when there was no traffic")
			}
		}
		b.close()
		if c.all.Len() != 15*len("frame") {
			t.Errorf("%d bytes arrived", c.all.Len())
		}
	})
}

func TestBatchIsWrittenBeforeTheConnectionIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &slowConn{turns: make(chan struct{}, 2)}
		b := newBatch(c, func() { t.Error("cut") })
		_, _ = b.Write([]byte("a"))
		synctest.Wait()
		_, _ = b.Write([]byte("b"))
		time.AfterFunc(farewellTime/2, func() {
			c.turns <- struct{}{}
			c.turns <- struct{}{}
		})
		b.close()
		if c.all.String() != "ab" {
			t.Errorf("%q was written before close returned", c.all.String())
		}
		if _, err := b.Write([]byte("c")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after close: %v", err)
		}
	})
}

func TestBatchOfAClientThatReadsNothingIsCut(t *testing.T) {
	for name, c := range map[string]struct {
		close bool
		want  time.Duration
	}{
		"while open": {false, writeTimeout},
		"closing":    {true, farewellTime},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ours, theirs := net.Pipe()
				defer func() { _ = theirs.Close() }()
				start, cut := time.Now(), time.Duration(0)
				b := newBatch(ours, func() {
					cut = time.Since(start)
					_ = ours.Close()
				})
				for range 100 { // more than the pipe holds
					if _, err := b.Write(make([]byte, batchPiece)); err != nil || c.close {
						break
					}
				}
				if c.close {
					_, _ = b.Write(make([]byte, batchSize-batchPiece))
				}
				b.close()
				if cut != c.want {
					t.Errorf("cut after %v, want %v", cut, c.want)
				}
			})
		})
	}
}

package upstream

import (
	"errors"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"pgregory.net/rapid"

	"edge/proxy/exchange"
)

func bodyOf(text string, length int64) *body {
	return newBody(&Request{Method: "POST", Length: length, Body: strings.NewReader(text)}, 0)
}

func replayable(b *body) bool {
	ok, _ := b.replayable()
	return ok
}

// viewOf begins a view, as an attempt does.
func viewOf(b *body) *view {
	v := new(view)
	b.begin(v)
	return v
}

// Whatever earlier views took, a later one sees the body from its first byte, or
// it is not begun because more than the limit was asked for.
func TestEveryViewSeesTheWholeBody(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringN(1, 60, -1).Draw(t, "text")
		text = strings.Repeat(text, rapid.SampledFrom([]int{1, 300}).Draw(t, "repeated")) // beyond a block
		limit := rapid.IntRange(0, len(text)+20).Draw(t, "limit")
		length := int64(-1)
		if rapid.Bool().Draw(t, "known") {
			length = int64(len(text))
		}
		b := bodyOf(text, length)
		b.limit = int64(limit)
		attempts := rapid.IntRange(0, 3).Draw(t, "attempts")
		for range attempts {
			v := viewOf(b)
			n := rapid.IntRange(0, len(text)).Draw(t, "taken")
			got, err := io.ReadAll(io.LimitReader(v, int64(n)))
			if err != nil || string(got) != text[:n] {
				t.Fatalf("view read %q, %v of %q", got, err, text[:n])
			}
			if replayable(b) != (b.read <= int64(limit)) {
				t.Fatalf("replayable %v after %d bytes of limit %d", replayable(b), b.read, limit)
			}
			if !replayable(b) {
				return
			}
			if b.kept.size != b.read || b.kept.size > int64(limit) {
				t.Fatalf("%d bytes kept of %d, limit %d", b.kept.size, b.read, limit)
			}
		}
		last := viewOf(b)
		if rapid.Bool().Draw(t, "early reply") {
			b.forget()
			if replayable(b) {
				t.Fatal("replayable after the reply began")
			}
		}
		if got, err := io.ReadAll(last); err != nil || string(got) != text {
			t.Fatalf("last view %q, %v; want %q", got, err, text)
		}
		if n := len(b.kept.list); n > 0 && (b.final || b.beyond) {
			t.Fatalf("%d blocks kept for nothing", n)
		}
	})
}

// An engine has left a goroutine in a Read of the source, and the request is
// sent again meanwhile.
func TestWhatALateReadBringsIsForTheNextAttempt(t *testing.T) {
	for name, early := range map[string]bool{"before the reply": false, "after the reply began": true} {
		t.Run(name, func(t *testing.T) {
			r, w := io.Pipe()
			b := newBody(&Request{Method: "POST", Length: -1, Body: r}, 100)
			first := viewOf(b)
			var late, next sync.WaitGroup
			got := make([]byte, 10)
			late.Go(func() {
				if n, err := io.ReadFull(first, got[:2]); n != 2 || err != nil {
					t.Errorf("first view: %d, %v", n, err)
				}
				if n, err := first.Read(got); n != 0 || !errors.Is(err, errBodyGone) {
					t.Errorf("late Read of the first view: %d, %v; want errBodyGone", n, err)
				}
			})
			_, _ = io.WriteString(w, "ab")
			for reading := false; !reading; { // into the second Read
				b.mu.Lock()
				reading = b.reading && b.read == 2
				b.mu.Unlock()
			}
			second := viewOf(b)
			if early {
				b.forget()
			}
			next.Go(func() {
				if all, err := io.ReadAll(second); string(all) != "abcdef" || err != nil {
					t.Errorf("second view %q, %v; want abcdef", all, err)
				}
			})
			_, _ = io.WriteString(w, "cd")
			late.Wait()
			_, _ = io.WriteString(w, "ef")
			w.Close()
			next.Wait()
			b.close()
			if b.kept.list != nil {
				t.Error("memory is kept after the end")
			}
		})
	}
}

// An engine that has failed may have a goroutine that is about to read on. What it
// took then, beyond the limit, would be missing in the next attempt.
func TestNothingIsTakenOnceTheBodyIsToBeReplayed(t *testing.T) {
	for _, length := range []int64{-1, 6} {
		b := bodyOf("abcdef", length)
		b.limit = 2
		first := viewOf(b)
		if n, err := io.ReadFull(first, make([]byte, 2)); n != 2 || err != nil {
			t.Fatalf("first view: %d, %v", n, err)
		}
		b.retire()
		if !replayable(b) {
			t.Fatal("not replayable after as much as the limit")
		}
		if n, err := first.Read(make([]byte, 10)); n != 0 || !errors.Is(err, errBodyGone) {
			t.Errorf("late Read of the first view: %d, %v; want errBodyGone", n, err)
		}
		if got, err := io.ReadAll(viewOf(b)); string(got) != "abcdef" || err != nil {
			t.Errorf("second view %q, %v; want abcdef", got, err)
		}
	}
}

func TestReadBeyondTheLimitDecidesBeforeItEnds(t *testing.T) {
	r, w := io.Pipe()
	b := newBody(&Request{Method: "POST", Length: -1, Body: r}, 0)
	b.limit = 2
	v := viewOf(b)
	var reader sync.WaitGroup
	reader.Go(func() { _, _ = io.ReadAll(v) })
	_, _ = io.WriteString(w, "ab")
	for replayable(b) { // until the next Read has begun
		runtime.Gosched()
	}
	b.mu.Lock()
	read := b.read
	b.mu.Unlock()
	if read != 2 {
		t.Errorf("%d bytes read, want 2 and a Read under way", read)
	}
	w.Close()
	reader.Wait()
}

// What one request may keep is bounded, and what all of them keep together.
func TestBodiesShareTheMemoryForReplay(t *testing.T) {
	text := strings.Repeat("a", earlyBody+2*grant)
	var s share
	s.left.Store(grant)
	upload := func(whole bool) *body {
		b := newBody(&Request{Method: "POST", Length: -1, Body: strings.NewReader(text)}, 1<<20)
		b.share = &s
		v := viewOf(b)
		if n, err := io.ReadFull(v, make([]byte, earlyBody+grant)); n != earlyBody+grant || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
		if replayable(b) != whole {
			t.Errorf("replayable %v, want %v", !whole, whole)
		}
		if rest, err := io.ReadAll(v); len(rest) != grant || err != nil || replayable(b) {
			t.Errorf("%d bytes follow, %v, replayable %v; want %d and nothing to keep them in", len(rest), err, replayable(b), grant)
		}
		return b
	}
	upload(true) // and free, as it can not be replayed any more
	hog := newBody(&Request{Method: "POST", Length: -1, Body: strings.NewReader(text)}, 1<<20)
	hog.share = &s
	if n, err := io.ReadFull(viewOf(hog), make([]byte, earlyBody+1)); err != nil || s.left.Load() != 0 {
		t.Fatalf("%d, %v, %d left; want none", n, err, s.left.Load())
	}
	upload(false).close()
	hog.close()
	upload(true).close()
	if left := s.left.Load(); left != grant {
		t.Errorf("%d bytes left in the end, want %d", left, grant)
	}
}

func TestEndOfKnownLengthIsNotAskedFor(t *testing.T) {
	b := newBody(&Request{Method: "POST", Length: 2, Body: io.MultiReader(strings.NewReader("ab"), failing{errors.New("asked")})}, 0)
	if got, err := io.ReadAll(viewOf(b)); string(got) != "ab" || err != nil {
		t.Errorf("read %q, %v; want ab", got, err)
	}
}

func TestBodyThatEndsWithItsLastBytes(t *testing.T) {
	for name, length := range map[string]int64{"known": 2, "unknown": -1} {
		b := newBody(&Request{Method: "POST", Length: length, Body: iotest.DataErrReader(strings.NewReader("ab"))}, 10)
		for range 2 {
			if got, err := io.ReadAll(viewOf(b)); string(got) != "ab" || err != nil {
				t.Errorf("%s: read %q, %v; want ab", name, got, err)
			}
		}
	}
}

func TestBodyShorterThanItsLength(t *testing.T) {
	if _, err := io.ReadAll(viewOf(bodyOf("ab", 3))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v, want io.ErrUnexpectedEOF", err)
	}
}

// Trailers are asked for once, while a close would still wait for it.
func TestTrailersAreTakenAtTheEnd(t *testing.T) {
	asked := 0
	b := newBody(&Request{Method: "POST", Length: -1, Body: strings.NewReader("ab"), Trailer: func() exchange.Fields {
		asked++
		return exchange.Fields{{Name: "x-sum", Value: "1"}}
	}}, 10)
	for range 2 {
		v := viewOf(b)
		if _, err := io.ReadAll(v); err != nil || v.trailer().Get("x-sum") != "1" {
			t.Errorf("trailer %v, %v; want x-sum: 1", v.trailer(), err)
		}
	}
	if asked != 1 {
		t.Errorf("asked %d times, want once", asked)
	}
}

func TestOldViewsAndClosedBodiesAreNotRead(t *testing.T) {
	b := bodyOf("abc", -1)
	old := viewOf(b)
	v := viewOf(b)
	if _, err := old.Read(make([]byte, 1)); !errors.Is(err, errBodyGone) {
		t.Errorf("old view: %v, want errBodyGone", err)
	}
	b.abort()
	if _, err := v.Read(make([]byte, 1)); !errors.Is(err, errBodyGone) || replayable(b) || !b.stopped() {
		t.Errorf("view of an aborted body: %v, want errBodyGone and no other view", err)
	}
	b.close()
}

func TestNoBodyIsNil(t *testing.T) {
	for name, req := range map[string]*Request{
		"no reader":   {Method: "POST", Length: -1},
		"zero length": {Method: "POST", Body: strings.NewReader("x")},
		"upgrade":     {Method: "GET", Length: 1, Body: strings.NewReader("x"), Upgrade: true},
	} {
		if b := newBody(req, 10); b != nil || !replayable(b) || b.stopped() {
			t.Errorf("%s: %v, want nil and replayable", name, b)
		}
	}
}

// TestCloseInterruptsAReadThatBeginsMeanwhile: a client that is silent must not
// hold the end of its exchange. A mutex that was waited for for a millisecond is
// handed on in order, so that the Read comes in between what close does.
func TestCloseInterruptsAReadThatBeginsMeanwhile(t *testing.T) {
	for range 20 {
		interrupted := make(chan struct{})
		b := newBody(&Request{
			Method: "POST", Length: -1, Interrupt: func() { close(interrupted) },
			Body: readFunc(func([]byte) (int, error) { <-interrupted; return 0, io.ErrClosedPipe }),
		}, 0)
		v := viewOf(b)
		var both sync.WaitGroup
		b.mu.Lock()
		both.Go(b.close)
		<-time.After(2 * time.Millisecond)
		both.Go(func() { _, _ = v.Read(make([]byte, 1)) })
		<-time.After(2 * time.Millisecond)
		b.mu.Unlock()
		b.mu.Lock() // close wakes in vain, and asks for the order
		<-time.After(2 * time.Millisecond)
		b.mu.Unlock()
		done := make(chan struct{})
		go func() { both.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			close(interrupted)
			t.Fatal("close waits for the client")
		}
	}
}

type readFunc func(p []byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

package upstream

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"pgregory.net/rapid"
)

func bodyOf(text string, length int64, limit int) *body {
	return newBody(&Request{Method: "POST", Length: length, Body: strings.NewReader(text)}, limit)
}

// Whatever earlier views took, a later one sees the body from its first byte, or
// it is refused because more than the limit was read.
func TestEveryViewSeesTheWholeBodyOrNone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringN(1, 60, -1).Draw(t, "text")
		limit := rapid.IntRange(0, 80).Draw(t, "limit")
		length := int64(-1)
		if rapid.Bool().Draw(t, "known") {
			length = int64(len(text))
		}
		b := bodyOf(text, length, limit)
		read := 0
		for range rapid.IntRange(0, 3).Draw(t, "attempts") {
			n := rapid.IntRange(0, len(text)).Draw(t, "taken")
			v := b.view(&attempt{}, nil)
			if got, err := io.ReadAll(io.LimitReader(v, int64(n))); err == nil && string(got) != text[:n] {
				t.Fatalf("view read %q of %q", got, text)
			}
			v.Close()
			if read <= limit {
				read = max(read, n)
			}
		}
		if got := b.replayable(); got != (read <= limit) {
			t.Fatalf("replayable %v after %d bytes of limit %d", got, read, limit)
		}
		got, err := io.ReadAll(b.view(&attempt{}, nil))
		switch {
		case read <= limit && (err != nil || string(got) != text):
			t.Fatalf("last view %q, %v; want %q", got, err, text)
		case read > limit && !errors.Is(err, http.ErrBodyReadAfterClose):
			t.Fatalf("last view %q, %v; want ErrBodyReadAfterClose", got, err)
		}
	})
}

func TestEndOfKnownLengthIsNotAskedFor(t *testing.T) {
	b := newBody(&Request{Method: "POST", Length: 2, Body: io.MultiReader(strings.NewReader("ab"), failing{errors.New("asked")})}, 0)
	if got, err := io.ReadAll(b.view(&attempt{}, nil)); string(got) != "ab" || err != nil {
		t.Errorf("read %q, %v; want ab", got, err)
	}
	if err := b.failure(); err != nil {
		t.Errorf("failure %v, want none", err)
	}
}

func TestBodyThatEndsWithItsLastBytes(t *testing.T) {
	b := newBody(&Request{Method: "POST", Length: 2, Body: iotest.DataErrReader(strings.NewReader("ab"))}, 0)
	if got, err := io.ReadAll(b.view(&attempt{}, nil)); string(got) != "ab" || err != nil {
		t.Errorf("read %q, %v; want ab", got, err)
	}
}

func TestReplyEndsTheKeeping(t *testing.T) {
	b := bodyOf("abcdef", -1, 100)
	v := b.view(&attempt{}, nil)
	io.ReadFull(v, make([]byte, 2))
	b.forget()
	if b.replayable() {
		t.Error("replayable after the reply began")
	}
	if rest, err := io.ReadAll(v); string(rest) != "cdef" || err != nil || b.kept != nil {
		t.Errorf("rest %q, %v, %d bytes kept; want cdef and none", rest, err, len(b.kept))
	}
}

func TestClosedViewAndBodyAreNotRead(t *testing.T) {
	b := bodyOf("abc", -1, 100)
	v := b.view(&attempt{}, nil)
	v.Close()
	if _, err := v.Read(make([]byte, 1)); !errors.Is(err, http.ErrBodyReadAfterClose) {
		t.Errorf("closed view: %v, want ErrBodyReadAfterClose", err)
	}
	other := b.view(&attempt{}, nil)
	b.close()
	if _, err := other.Read(make([]byte, 1)); !errors.Is(err, http.ErrBodyReadAfterClose) {
		t.Errorf("view of a closed body: %v, want ErrBodyReadAfterClose", err)
	}
}

func TestNoBodyIsNil(t *testing.T) {
	for name, req := range map[string]*Request{
		"no reader":   {Method: "POST", Length: -1},
		"zero length": {Method: "POST", Body: strings.NewReader("x")},
		"upgrade":     {Method: "GET", Length: 1, Body: strings.NewReader("x"), Upgrade: true},
	} {
		if b := newBody(req, 10); b != nil || !b.replayable() || b.failure() != nil {
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
		var both sync.WaitGroup
		b.mu.Lock()
		both.Go(b.close)
		<-time.After(2 * time.Millisecond)
		both.Go(func() { _, _ = b.view(&attempt{}, nil).Read(make([]byte, 1)) })
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

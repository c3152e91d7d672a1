package proxy_test

import (
	"testing"
	"time"

	"golang.org/x/net/http2"

	"edge/internal/modelserver"
)

// open sends a header block that is not complete.
func (c *h2conn) open(tb testing.TB, id uint32, fields ...string) {
	tb.Helper()
	c.encode(tb, fields)
	if err := c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.block.Bytes(), EndStream: true}); err != nil {
		tb.Fatal(err)
	}
}

func get() []string {
	return []string{":method", "GET", ":scheme", "https", ":path", "/echo", ":authority", "a.example.com"}
}

func TestHeaderBlockMayHaveContinuations(t *testing.T) {
	e, _ := startModel(t, modelserver.Script{})
	c := e.h2(t)
	for id := uint32(1); id <= 5; id += 2 { // the count is per block
		c.open(t, id, get()...)
		for i := range 8 {
			if err := c.WriteContinuation(id, i == 7, nil); err != nil {
				t.Fatal(err)
			}
		}
		if got := c.status(t, id); got != "200" {
			t.Fatalf("stream %d: got %s, want 200", id, got)
		}
	}
}

func TestEndlessContinuationsEndTheConnection(t *testing.T) {
	e, m := startModel(t, modelserver.Script{})
	c := e.h2(t)
	c.open(t, 1, get()...)
	for range 100_000 {
		if err := c.WriteContinuation(1, false, nil); err != nil {
			break // as it should
		}
	}
	if got := c.ended(t); !got {
		t.Error("the connection goes on")
	}
	if m.Count() != 0 {
		t.Error("a request reached the backend")
	}
}

func TestUnfinishedHeaderBlockEndsTheConnection(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the bound of a request head, 5 s")
	}
	t.Parallel()
	e, _ := startModel(t, modelserver.Script{})
	c := e.h2(t)
	begin := time.Now()
	c.open(t, 1, get()...)
	if !c.ended(t) {
		t.Error("the connection goes on")
	}
	if d := time.Since(begin); d < 3*time.Second || d > 10*time.Second {
		t.Errorf("it ended after %v, want about 5 s", d)
	}
}

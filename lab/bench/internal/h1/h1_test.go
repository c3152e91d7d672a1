package h1

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// read takes one message from text, a byte at a time when slow.
func read(text string, slow, toEOF bool) (h Head, body, left string, err error) {
	var r io.Reader = strings.NewReader(text)
	if slow {
		r = iotest.OneByteReader(r)
	}
	br := bufio.NewReaderSize(r, 256)
	if err := ReadHead(br, &h); err != nil {
		return h, "", "", err
	}
	h.Line = []byte(string(h.Line)) // it dies with the next read
	var b strings.Builder
	err = Body(br, &h, toEOF, func(p []byte) error { b.Write(p); return nil })
	rest, _ := io.ReadAll(br)
	return h, b.String(), string(rest), err
}

func TestMessagesAreFramed(t *testing.T) {
	const next = "HTTP/1.1 204 next"
	for _, c := range []struct {
		name, text, line, body, left string
		toEOF, closes                bool
	}{
		{"length", "HTTP/1.1 200 OK\r\nCONTENT-length: 5\r\n\r\nhello" + next, "HTTP/1.1 200 OK", "hello", next, true, false},
		{"chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n" + next, "HTTP/1.1 200 OK", "abc0123456789", next, true, false},
		{"to the end", "HTTP/1.1 200 OK\r\nconnection: Close\r\n\r\nall of it", "HTTP/1.1 200 OK", "all of it", "", true, true},
		{"no body", "GET / HTTP/1.1\r\nhost: a\r\n\r\n" + next, "GET / HTTP/1.1", "", next, false, false},
		{"no fields", "GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1", "", "", false, false},
	} {
		for _, slow := range []bool{false, true} {
			h, body, left, err := read(c.text, slow, c.toEOF)
			if err != nil || string(h.Line) != c.line || body != c.body || left != c.left || h.Close != c.closes {
				t.Errorf("%s, slow %v: got line %q, body %q, left %q, close %v, error %v", c.name, slow, h.Line, body, left, h.Close, err)
			}
		}
	}
}

func TestBadMessagesAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want error
	}{
		"end":              {"", io.EOF},
		"end in the head":  {"GET / HTTP/1.1\r\nhost", io.ErrUnexpectedEOF},
		"head too long":    {"GET / HTTP/1.1\r\nx: " + strings.Repeat("y", 300), ErrHead},
		"length":           {"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", ErrHead},
		"no colon":         {"HTTP/1.1 200 OK\r\nnothing\r\n\r\n", ErrHead},
		"no name":          {"HTTP/1.1 200 OK\r\n: x\r\n\r\n", ErrHead},
		"chunk size":       {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", ErrHead},
		"chunk size empty": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n", ErrHead},
		"chunk size long":  {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0000000000000001\r\n", ErrHead},
		"end in the body":  {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", io.EOF},
		"end in the chunk": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", io.EOF},
	} {
		if _, _, _, err := read(c.text, false, true); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

func TestErrorOfTheCallbackEndsTheBody(t *testing.T) {
	stop := errors.New("stop")
	for _, head := range []string{"Content-Length: 3\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "\r\nabc"} {
		br := bufio.NewReader(strings.NewReader("HTTP/1.1 200 OK\r\n" + head))
		var h Head
		if err := ReadHead(br, &h); err != nil {
			t.Fatal(err)
		}
		if err := Body(br, &h, true, func([]byte) error { return stop }); !errors.Is(err, stop) {
			t.Errorf("%q: got %v, want %v", head, err, stop)
		}
	}
}

func TestReadingAllocatesNothing(t *testing.T) {
	const text = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"
	r := strings.NewReader(text)
	br := bufio.NewReader(r)
	var h Head
	if n := testing.AllocsPerRun(100, func() {
		r.Reset(text)
		br.Reset(r)
		if ReadHead(br, &h) != nil || Body(br, &h, true, Discard) != nil {
			t.Error("the message was not read")
		}
	}); n > 0 {
		t.Errorf("%v allocations a message, want none", n)
	}
}

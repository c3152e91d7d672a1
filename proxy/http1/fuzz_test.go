package http1

import (
	"bufio"
	"bytes"
	"io"
	"maps"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"testing"

	"edge/proxy/exchange"

	"golang.org/x/net/http/httpguts"
)

// readReference has net/http read the tape as a Transport would: it skips interim
// replies, and takes a 101 for the last.
func readReference(tape string, method string) (resp *http.Response, body, rest string, err error) {
	br := bufio.NewReaderSize(strings.NewReader(tape), 128<<10) // or long trailers are refused
	for {
		resp, err = http.ReadResponse(br, &http.Request{Method: method})
		if err != nil {
			return nil, "", "", err
		}
		if resp.StatusCode == http.StatusSwitchingProtocols || resp.StatusCode >= 200 {
			break
		}
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			return nil, "", "", err
		}
		body = string(b)
	}
	left, _ := io.ReadAll(br)
	return resp, body, string(left), nil
}

// header is f as net/http would hold it, without what it takes out or changes.
func header(f exchange.Fields) http.Header {
	h := http.Header{}
	for _, x := range f {
		h.Add(x.Name, x.Value)
	}
	return plain(h)
}

func plain(h http.Header) http.Header {
	h = maps.Clone(h)
	for _, name := range []string{"Content-Length", "Transfer-Encoding", "Trailer", "Connection", "Cache-Control"} {
		delete(h, name)
	}
	return h
}

// FuzzReplyReader has the law of this package: what it takes net/http takes, too,
// and understands in the same way.
func FuzzReplyReader(f *testing.F) {
	for _, seed := range replySeeds() {
		f.Add([]byte(seed), byte(0), uint16(0))
		f.Add([]byte(seed), byte(1), uint16(3))
	}
	f.Fuzz(func(t *testing.T, tape []byte, kind byte, piece uint16) {
		call := get("/")
		call.Method = []string{"GET", "HEAD", "POST"}[int(kind)%3]
		call.Upgrade = kind&0x80 != 0
		h := hear(t, string(tape), call, int(piece)+1)
		if h.err != nil {
			return // we may refuse more
		}
		resp, body, rest, err := readReference(string(tape), call.Method)
		if err != nil {
			t.Fatalf("net/http refuses what we take: %v\n%q", err, tape)
		}
		if resp.StatusCode != h.reply.Status {
			t.Errorf("status %d, net/http says %d", h.reply.Status, resp.StatusCode)
		}
		if ours, theirs := header(h.reply.Header), plain(resp.Header); !maps.EqualFunc(ours, theirs, slices.Equal) {
			t.Errorf("fields\n%q, net/http says\n%q", ours, theirs)
		}
		if h.reply.Tunnel != nil {
			early, _ := io.ReadAll(h.reply.Tunnel)
			if string(early) != rest {
				t.Errorf("behind the 101 comes %q, net/http says %q", early, rest)
			}
			h.reply.Tunnel.Close()
			return
		}
		compareBodies(t, h, resp, body, rest)
	})
}

func compareBodies(t *testing.T, h heard, resp *http.Response, body, rest string) {
	t.Helper()
	if h.body != body {
		t.Errorf("body %q, net/http says %q", h.body, body)
	}
	if !strings.HasSuffix(rest, h.rest) {
		t.Errorf("left %q, net/http leaves %q", h.rest, rest)
	}
	bodiless := resp.StatusCode == http.StatusNoContent || resp.StatusCode == http.StatusNotModified
	if h.reply.Length != resp.ContentLength && !bodiless {
		t.Errorf("length %d, net/http says %d", h.reply.Length, resp.ContentLength)
	}
	if h.kept && (resp.Close || rest != h.rest) {
		t.Errorf("kept a connection that net/http closes, or with something left: %q", rest)
	}
	trailer := http.Header{}
	for name, values := range resp.Trailer {
		if len(values) > 0 && httpguts.ValidTrailerHeader(name) {
			trailer[name] = values
		}
	}
	if ours := header(h.reply.Body.Trailer()); !maps.EqualFunc(ours, plain(trailer), slices.Equal) {
		t.Errorf("trailer %q, net/http says %q", ours, trailer)
	}
}

// replySeeds are replies of all kinds, good and bad.
func replySeeds() []string {
	const ok = "HTTP/1.1 200 OK\r\n"
	const chunked = ok + "Transfer-Encoding: chunked\r\n\r\n"
	return []string{
		ok + "Content-Length: 5\r\nContent-Type: text/plain\r\n\r\nhello",
		ok + "\r\nto the end",
		chunked + "5\r\nhello\r\n0\r\n\r\n",
		chunked + "5;a=b\r\nhello\r\n1 \r\n!\r\n0\r\nX-Sum: 7\r\nx-sum: 8\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
		ok + "Transfer-Encoding: chunked\r\nTrailer: a, B\r\n\r\n0\r\nA: 1\r\n\r\n",
		"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
		"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: \"x\"\r\n\r\n",
		"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok + "Content-Length: 0\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\n" + chunked + "0\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\nConnection: x, Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x02hi",
		ok + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		ok + "Content-Length: 2\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi",
		ok + "Content-Length: 02\r\nContent-Length: 2\r\n\r\nhi",
		ok + "Content-Length: 00000000000000000000002\r\n\r\nhi",
		ok + "A:b\r\n\tc\r\nD : e\r\n\r\n",
		ok + "A: \xff\xfe \r\nPragma: no-cache\r\n\r\n",
		"HTTP/1.1 200\r\nContent-Length: 1\r\n\r\nx",
		"HTTP/1.1 999 \r\n\r\n",
		"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
		chunked + "00000000000000001\r\nx\r\n0\r\n\r\n",
		chunked + "FFFFFFFFFFFFFFFF\r\nx",
		chunked + "1\r\nx\n0\r\n\r\n",
		chunked + "1;\n\r\nx\r\n0\r\n\r\n",
		chunked + strings.Repeat("1;"+strings.Repeat("e", 900)+"\r\nx\r\n", 20) + "0\r\n\r\n",
		chunked + "0\r\nContent-Length: 3\r\nHost: a\r\n\r\n",
		ok + "Keep-Alive: timeout=5, max=100\r\nContent-Length: 0\r\n\r\n",
	}
}

// FuzzRequestHead has the law of what is sent: whatever a call holds, the server
// sees one request, and it is the call's.
func FuzzRequestHead(f *testing.F) {
	f.Add("GET", "/v1/models?a=b", "host:8000", "X-A", "b", int64(0), byte(0))
	f.Add("POST", "/\r\nX: y", "host", "Content-Length", "7", int64(5), byte(3))
	f.Add("PUT", "*", "[::1]:80", "Te", "gzip, trailers", int64(-1), byte(5))
	f.Add("GET", "/ HTTP/1.1", "a b", "X: y\r\n\r\nGET /", "\x00", int64(0), byte(0))
	f.Add("POST", "/\xe9", "", "Connection", "close, x", int64(1), byte(7))
	f.Fuzz(func(t *testing.T, method, target, host, name, value string, length int64, flags byte) {
		call := &exchange.Call{
			Method: method, Target: target, Host: host, Length: max(length, -1), Upgrade: flags&1 != 0,
			Header: exchange.Fields{{Name: "First", Value: "1"}, {Name: name, Value: value}},
		}
		last := flags&4 != 0
		head, err := appendHead(nil, call, call.Length, flags&2 != 0, last)
		if err != nil {
			return
		}
		br := bufio.NewReader(io.MultiReader(bytes.NewReader(head), strings.NewReader("NEXT")))
		r, err := http.ReadRequest(br)
		if err != nil {
			if strings.Contains(err.Error(), "invalid URL escape") || strings.Contains(err.Error(), "invalid request :path") {
				return // a target is sent as it is
			}
			t.Fatalf("net/http refuses what we send: %v\n%q", err, head)
		}
		if r.Method != method || r.RequestURI != target || r.Host != host || r.ContentLength != call.Length || r.Close != (last && !call.Upgrade) {
			t.Errorf("%q is understood as %s %s to %s, %d bytes, close %v", head, r.Method, r.RequestURI, r.Host, r.ContentLength, r.Close)
		}
		if r.Header.Get("First") != "1" || !isFraming(name) && !slices.Contains(r.Header[textproto.CanonicalMIMEHeaderKey(name)], strings.Trim(value, " \t")) {
			t.Errorf("fields are %q", r.Header)
		}
		if call.Length == 0 {
			if rest, _ := io.ReadAll(br); string(rest) != "NEXT" {
				t.Errorf("%q leaves %q", head, rest)
			}
		}
	})
}

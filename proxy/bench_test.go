package proxy_test

import (
	"bufio"
	"crypto/tls"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"edge/config"
	"edge/proxy"
)

// BenchmarkRequest is a small POST of an OpenAI client through the whole of the
// proxy, over TLS on the one side and over TCP on the other. The client and the
// backend here allocate nothing, so what is allocated is the proxy's.
func BenchmarkRequest(b *testing.B) {
	const body = 1024
	request := "POST /v1/chat/completions HTTP/1.1\r\nHost: a.example.com\r\n" +
		"Accept: application/json\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nContent-Type: application/json\r\n" +
		"User-Agent: OpenAI/Python 1.82.0\r\nAuthorization: Bearer sk-0123456789\r\n" +
		"X-Stainless-Lang: python\r\nX-Stainless-Package-Version: 1.82.0\r\nX-Stainless-Os: Linux\r\nX-Stainless-Arch: x64\r\n" +
		"X-Stainless-Runtime: CPython\r\nX-Stainless-Runtime-Version: 3.12.3\r\n" +
		"Content-Length: " + strconv.Itoa(body) + "\r\n\r\n" + strings.Repeat("x", body)
	const reply = "HTTP/1.1 200 OK\r\ndate: Tue, 24 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: 128\r\n" +
		"content-type: application/json\r\nx-request-id: 0123456789abcdef\r\n\r\n"
	answer := []byte(reply + strings.Repeat("y", 128))
	backend := listen(b, func(c *net.TCPConn, _ *bufio.Reader) {
		_ = c.SetDeadline(time.Time{}) // a benchmark may take its time
		buf := make([]byte, 8<<10)
		for got := 0; ; {
			n, err := c.Read(buf[got:])
			if err != nil {
				return
			}
			if got += n; got < body || !strings.HasSuffix(string(buf[got-1:got]), "x") || !complete(buf[:got], body) {
				continue
			}
			got = 0
			if _, err := c.Write(answer); err != nil {
				return
			}
		}
	})
	cfg := onePool(backend)
	cfg.Routes[0].Timeouts = config.Timeouts{FirstByte: 10 * time.Minute, StreamIdle: 2 * time.Minute, BodyIdle: time.Minute}
	e := start(b, cfg, func(o *proxy.Options) { o.Observe = func(*proxy.Record) {} })
	c, err := tls.Dial("tcp", e.addr, clientTLS("a.example.com", "http/1.1"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	send, r := []byte(request), bufio.NewReader(c)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write(send); err != nil {
			b.Fatal(err)
		}
		for {
			line, err := r.ReadSlice('\n')
			if err != nil {
				b.Fatal(err)
			}
			if len(line) == 2 {
				break
			}
		}
		if _, err := r.Discard(128); err != nil {
			b.Fatal(err)
		}
	}
}

// complete reports whether b holds a head and a body of that size.
func complete(b []byte, body int) bool {
	i := strings.Index(string(b), "\r\n\r\n")
	return i >= 0 && len(b) >= i+4+body
}

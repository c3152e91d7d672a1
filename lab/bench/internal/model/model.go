// Package model imitates a model server. It is built to cost little, so that
// the proxy in front of it is what a benchmark measures.
//
//	POST /v1/chat/completions  a JSON reply, or SSE when the query says so
//	     ?stream=1&n=EVENTS&gap=DURATION&ttft=DURATION&pad=BYTES&step=1
//	     &jitter=0             no random wait before the first event
//	     ?size=BYTES           size of the JSON reply (default 512)
//	POST /sink                 reads the body, replies with its length
//	GET  /bytes?n=BYTES        that many bytes, with a Content-Length
//	GET  /ws                   websocket echo
//	POST /grpc/…               H2 only: sends each run of bytes back as it comes
//
// Each SSE event is `data: {"t":NANOSECONDS,...}`: the wall clock just before
// the event was written, so that a client on the same machine knows what was
// added after that. With step=1 all streams of one gap emit at the same
// instant, as an engine that decodes in batches does.
package model

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"edge/lab/bench/internal/h1"
)

// Serve answers HTTP/1.1 on every connection of ln until that is closed, and
// returns nil then. Connections that are open stay served.
func Serve(ln net.Listener) error {
	replies := new(atomic.Uint64)
	for {
		c, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			defer c.Close() //nolint:errcheck // nothing hangs on it
			(&conn{c: c, br: bufio.NewReaderSize(c, 4<<10), replies: replies}).serve()
		}()
	}
}

// conn is a connection, served by one goroutine.
type conn struct {
	c       net.Conn
	br      *bufio.Reader
	out     []byte
	replies *atomic.Uint64 // of all connections
}

func (c *conn) serve() {
	var h h1.Head
	for {
		if h1.ReadHead(c.br, &h) != nil {
			return
		}
		path, query := target(h.Line)
		if path == "/ws" {
			c.websocket(&h)
			return
		}
		closing := h.Close
		if bytes.Contains(h.Raw, []byte("100-continue")) {
			if _, err := io.WriteString(c.c, "HTTP/1.1 100 Continue\r\n\r\n"); err != nil {
				return
			}
		}
		var got int64
		err := h1.Body(c.br, &h, false, func(b []byte) error { got += int64(len(b)); return nil })
		if err != nil || c.answer(path, query, got) != nil || closing {
			return
		}
	}
}

func (c *conn) answer(path string, query url.Values, got int64) error {
	switch {
	case path == "/sink":
		return c.reply(strconv.AppendInt(nil, got, 10))
	case path == "/bytes":
		return c.bytes(number(query, "n", 1<<20))
	case query.Get("stream") == "1":
		return c.stream(query)
	default:
		return c.reply(completion(number(query, "size", 512)))
	}
}

func target(line []byte) (string, url.Values) {
	f := bytes.Fields(line)
	if len(f) < 2 {
		return "", nil
	}
	path, query, ok := strings.Cut(string(f[1]), "?")
	if !ok {
		return path, nil
	}
	v, _ := url.ParseQuery(query)
	return path, v
}

func number(v url.Values, name string, otherwise int) int {
	if n, err := strconv.Atoi(v.Get(name)); err == nil && n >= 0 {
		return n
	}
	return otherwise
}

func duration(v url.Values, name string) time.Duration {
	d, _ := time.ParseDuration(v.Get(name))
	return d
}

const replyHead = "HTTP/1.1 200 OK\r\ndate: Mon, 23 Nov 2026 04:40:00 GMT\r\nserver: uvicorn\r\ncache-control: no-cache\r\n" +
	"openai-version: 2020-10-01\r\nopenai-processing-ms: 412\r\nx-request-id: req_"

// reply sends body in one write, as JSON.
func (c *conn) reply(body []byte) error {
	b := c.out[:0]
	b = append(b, replyHead...)
	b = strconv.AppendUint(b, c.replies.Add(1)|1<<48, 16) // a value of its own each time
	b = append(b, "\r\ncontent-type: application/json\r\ncontent-length: "...)
	b = strconv.AppendInt(b, int64(len(body)), 10)
	b = append(b, "\r\n\r\n"...)
	b = append(b, body...)
	c.out = b
	_, err := c.c.Write(c.out)
	return err
}

// blockSize is what one write of a download carries.
const blockSize = 64 << 10

// filler is text to send; nothing writes to it.
var filler = bytes.Repeat([]byte("the quick brown fox jumps over the lazy dog "), blockSize/44+1)

func completion(size int) []byte {
	const head = `{"id":"chatcmpl-1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"`
	const tail = `"},"finish_reason":"stop"}],"usage":{"prompt_tokens":100,"completion_tokens":20}}`
	b := append(make([]byte, 0, max(size, len(head)+len(tail))), head...)
	b = append(b, filler[:min(len(filler), max(0, size-len(head)-len(tail)))]...)
	return append(b, tail...)
}

func (c *conn) bytes(n int) error {
	head := "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: " + strconv.Itoa(n) + "\r\n\r\n"
	if _, err := io.WriteString(c.c, head); err != nil {
		return err
	}
	for n > 0 {
		block := filler[:min(blockSize, n)]
		if _, err := c.c.Write(block); err != nil {
			return err
		}
		n -= len(block)
	}
	return nil
}

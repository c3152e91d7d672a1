package proxy_test

import (
	"bufio"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// farewell is a way to end a connection.
type farewell int

const (
	fin   farewell = iota // end our half, and read on for a while
	shut                  // close, which answers what comes later with RST
	reset                 // RST
)

func (f farewell) String() string { return [...]string{"fin", "close", "reset"}[f] }

func (f farewell) say(c *net.TCPConn) {
	switch f {
	case fin:
		_ = c.CloseWrite()
		return
	case reset:
		_ = c.SetLinger(0)
	case shut:
	}
	_ = c.Close()
}

// restless is a backend that answers every request but ends idle connections at
// any time: right after a reply, after a random while, and preferably as others
// of its connections are being used, so that its farewell and a request cross.
type restless struct {
	url     string
	longest time.Duration // that it keeps an idle connection

	ended [3]atomic.Int64 // connections, by farewell
	raced atomic.Int64    // requests that came after our FIN, as far as we looked

	mu     sync.Mutex
	idle   map[*net.TCPConn]bool
	served map[string]int // by path
}

const (
	atOnce    = 0.04                   // of the replies end the connection, and so many again by RST
	crossing  = 0.25                   // of the requests have us leave idle connections
	crossed   = 2                      // so many of them
	lookAfter = 100 * time.Millisecond // at what comes after our FIN
)

func newRestless(tb testing.TB, longest time.Duration) *restless {
	tb.Helper()
	b := &restless{longest: longest, idle: map[*net.TCPConn]bool{}, served: map[string]int{}}
	b.url = listen(tb, b.serve)
	return b
}

func (b *restless) serve(c *net.TCPConn, r *bufio.Reader) {
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		b.leaveOthers()
		sum := crc32.NewIEEE()
		n, err := io.Copy(sum, req.Body)
		if err != nil {
			return
		}
		b.mu.Lock()
		b.served[req.URL.Path]++
		b.mu.Unlock()
		reply := receipt(req.URL.Path, n, sum.Sum32())
		if _, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(reply), reply); err != nil {
			return
		}
		how := farewell(rand.IntN(3))
		wait := rand.N(b.longest)
		switch draw := rand.Float64(); {
		case draw < atOnce:
			how, wait = shut, 0
		case draw < 2*atOnce:
			how, wait = reset, 0
		}
		if wait == 0 || !b.await(c, r, wait) {
			b.end(c, r, how)
			return
		}
	}
}

// receipt is the reply to a request, which says what arrived of it.
func receipt(path string, length int64, sum uint32) string {
	return fmt.Sprintf("%s %d %08x", path, length, sum)
}

// await waits for the next request, at most for a while, or until it is told to
// leave. It reports whether there is one.
func (b *restless) await(c *net.TCPConn, r *bufio.Reader, wait time.Duration) bool {
	b.mu.Lock()
	_ = c.SetReadDeadline(time.Now().Add(wait))
	b.idle[c] = true
	b.mu.Unlock()
	_, err := r.Peek(1)
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.idle, c)
	_ = c.SetDeadline(time.Now().Add(patience))
	return err == nil
}

// leaveOthers tells idle connections to leave now.
func (b *restless) leaveOthers() {
	if rand.Float64() >= crossing {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for c := range b.idle {
		_ = c.SetReadDeadline(time.Now())
		if n++; n == crossed {
			return
		}
	}
}

func (b *restless) end(c *net.TCPConn, r *bufio.Reader, how farewell) {
	b.ended[how].Add(1)
	how.say(c)
	if how != fin {
		return
	}
	_ = c.SetReadDeadline(time.Now().Add(lookAfter))
	if _, err := r.Peek(1); err == nil {
		b.raced.Add(1)
	}
}

// repeated returns how many requests were served more than once.
func (b *restless) repeated() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, times := range b.served {
		if times > 1 {
			n++
		}
	}
	return n
}

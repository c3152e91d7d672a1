package main

import (
	"io"
	"log" //nolint:depguard // net/http and httputil take nothing else
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
)

// copySize is that of httputil's own buffers, which it would allocate anew.
const copySize = 32 << 10

// newProxy forwards /grpc/ to the h2c address, the rest to the backend.
func newProxy(backend, h2c string) http.Handler {
	buffers := &buffers{}
	model := newReverse(backend, buffers, &http.Transport{
		MaxIdleConnsPerHost: 8192, IdleConnTimeout: idleTime,
		DisableCompression: true, WriteBufferSize: 8 << 10, ReadBufferSize: 8 << 10,
	})
	prior := new(http.Protocols)
	prior.SetUnencryptedHTTP2(true)
	grpc := newReverse(h2c, buffers, &http.Transport{Protocols: prior, DisableCompression: true})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/grpc/") {
			grpc.ServeHTTP(w, r)
			return
		}
		// Without this the server closes the request's body when the reply's
		// head is written, and if the Transport has yet to see that body's
		// EOF it drops the upstream connection in the middle of the reply
		// (golang/go#40747). HTTP/2 is full duplex and says that it is not
		// supported.
		_ = http.NewResponseController(w).EnableFullDuplex()
		model.ServeHTTP(w, r)
	})
}

func newReverse(addr string, buffers *buffers, t *http.Transport) *httputil.ReverseProxy {
	to := &url.URL{Scheme: "http", Host: addr}
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.SetXForwarded()
			r.Out.Host = r.In.Host
		},
		Transport:     t,
		FlushInterval: -1,
		BufferPool:    buffers,
		ErrorLog:      quiet(),
	}
}

// buffers is an httputil.BufferPool.
type buffers struct{ pool sync.Pool }

// Get returns a buffer of copySize.
func (p *buffers) Get() []byte {
	if b, ok := p.pool.Get().(*[]byte); ok {
		return *b
	}
	return make([]byte, copySize)
}

// Put takes a buffer back.
func (p *buffers) Put(b []byte) { p.pool.Put(&b) }

// quiet drops the library's messages: the peers run without logs.
func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

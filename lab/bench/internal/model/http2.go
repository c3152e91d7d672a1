package model

import (
	"io"
	"net/http"
	"strings"
)

// H2 serves the same paths for a server of net/http that speaks HTTP/2, and
// /grpc/…: a bidirectional stream that sends each run of bytes back.
func H2(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if strings.HasPrefix(r.URL.Path, "/grpc/") {
		echo(w, r)
		return
	}
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return
	}
	if q.Get("stream") != "1" {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(completion(number(q, "size", 512)))
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	flush := http.NewResponseController(w).Flush
	if flush() != nil {
		return
	}
	_ = emit(q, func(event []byte) error { // its errors mean that the client left
		if _, err := w.Write(event); err != nil {
			return err
		}
		return flush()
	})
}

func echo(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status")
	flush := http.NewResponseController(w).Flush
	if flush() != nil {
		return
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Body.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil || flush() != nil {
				return
			}
		}
		if err != nil {
			break
		}
	}
	w.Header().Set("Grpc-Status", "0")
}

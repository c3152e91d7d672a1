package modelserver

import (
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// Echo is the answer of /echo.
type Echo struct {
	Server  string      `json:"server"`
	Method  string      `json:"method"`
	Target  string      `json:"target"` // as it came in the request line
	Proto   string      `json:"proto"`
	Host    string      `json:"host"`
	Remote  string      `json:"remote"`
	Headers [][2]string `json:"headers"` // by name; values of one name in their order

	// TransferEncoding and ContentLength (-1 is unknown) tell the framing.
	TransferEncoding []string    `json:"transfer_encoding,omitempty"`
	ContentLength    int64       `json:"content_length"`
	Trailers         [][2]string `json:"trailers,omitempty"`
	Body             []byte      `json:"body"` // base64 in JSON
}

// Header returns the values of a header, whose name is in canonical form.
func (e *Echo) Header(name string) []string {
	var values []string
	for _, h := range e.Headers {
		if h[0] == name {
			values = append(values, h[1])
		}
	}
	return values
}

// handler routes the requests and lets Close wait for them.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/chat/completions", s.chat)
	mux.HandleFunc("GET /v1/models", s.listModels)
	mux.HandleFunc("GET /health", s.serveHealth)
	mux.HandleFunc("POST /confirm", s.confirm)
	mux.HandleFunc("GET /ws", s.websocket)
	mux.HandleFunc("/echo", s.echo)
	mux.HandleFunc("/echo/", s.echo)
	mux.HandleFunc("/duplex", s.duplex)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			cut(w)
			return
		}
		s.running.Add(1)
		s.mu.Unlock()
		defer s.running.Done()
		w.Header().Set(NameHeader, s.name)
		mux.ServeHTTP(w, r)
		select {
		case <-s.closing: // net/http would end what was cut short as if it were whole
			cut(w)
		default:
		}
	})
}

// cut closes the connection of a request.
func cut(w http.ResponseWriter) {
	if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
		_ = conn.Close()
	}
}

func (s *Server) listModels(w http.ResponseWriter, r *http.Request) {
	s.arrive(r)
	data := make([]map[string]any, 0, len(s.models))
	for _, name := range s.models {
		data = append(data, map[string]any{"id": name, "object": "model", "created": time.Now().Unix(), "owned_by": s.name})
	}
	writeJSON(w, http.StatusOK, map[string]any{"object": "list", "data": data})
}

func (s *Server) serveHealth(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.checks++
	status := s.health
	s.mu.Unlock()
	if status == 0 {
		s.hang(r.Context())
		return
	}
	writeJSON(w, status, map[string]string{"server": s.name})
}

func (s *Server) confirm(w http.ResponseWriter, r *http.Request) {
	n := 1
	if text := r.URL.Query().Get("n"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil || n < 1 || n > maxConfirms {
			writeError(w, http.StatusBadRequest, "n is no good number")
			return
		}
	}
	if !s.ConfirmKey(r.URL.Query().Get("key"), n) {
		writeError(w, http.StatusTooManyRequests, "too many confirmations are waiting")
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *Server) echo(w http.ResponseWriter, r *http.Request) {
	_, body, _ := s.arrive(r)
	writeJSON(w, http.StatusOK, Echo{
		Server: s.name, Method: r.Method, Target: r.RequestURI, Proto: r.Proto, Host: r.Host, Remote: r.RemoteAddr,
		Headers: list(r.Header), TransferEncoding: r.TransferEncoding, ContentLength: r.ContentLength,
		Trailers: list(r.Trailer), Body: body,
	})
}

func list(h http.Header) [][2]string {
	var all [][2]string
	for _, name := range slices.Sorted(maps.Keys(h)) {
		for _, value := range h[name] {
			all = append(all, [2]string{name, value})
		}
	}
	return all
}

// duplex sends each piece of the body back before it reads the next one.
func (s *Server) duplex(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	if err := rc.EnableFullDuplex(); err != nil {
		writeError(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_ = rc.Flush()
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Body.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil || rc.Flush() != nil {
				s.left(r, 0)
				return
			}
		}
		if err == io.EOF {
			return
		}
		if err != nil {
			s.left(r, 0)
			return
		}
	}
}

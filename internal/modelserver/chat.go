package modelserver

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// chatRequest is the part of a chat completions request that matters here.
type chatRequest struct {
	Model         string `json:"model"`
	Stream        bool   `json:"stream"`
	StreamOptions struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
	Messages []struct {
		Role    string          `json:"role"`
		Content json.RawMessage `json:"content"`
	} `json:"messages"`
}

// The response objects of the OpenAI API.
type (
	message struct {
		Role    string `json:"role,omitempty"`
		Content string `json:"content,omitempty"`
	}
	choice struct {
		Index        int      `json:"index"`
		Message      *message `json:"message,omitempty"`
		Delta        *message `json:"delta,omitempty"`
		FinishReason *string  `json:"finish_reason"`
	}
	usage struct {
		PromptTokens     int `json:"prompt_tokens"`
		CompletionTokens int `json:"completion_tokens"`
		TotalTokens      int `json:"total_tokens"`
	}
	completion struct {
		ID                string   `json:"id"`
		Object            string   `json:"object"`
		Created           int64    `json:"created"`
		Model             string   `json:"model"`
		SystemFingerprint string   `json:"system_fingerprint"`
		Choices           []choice `json:"choices"`
		Usage             *usage   `json:"usage,omitempty"`
	}
)

// reply is one answer of the chat API on its way.
type reply struct {
	s      *Server
	w      http.ResponseWriter
	r      *http.Request
	rc     *http.ResponseController
	script Script
	req    chatRequest
	base   completion // what all chunks share
	usage  usage
	sent   int // tokens

	malformed error // why the request is none
}

func (s *Server) chat(w http.ResponseWriter, r *http.Request) {
	seen, body, script := s.arrive(r)
	a := &reply{s: s, w: w, r: r, rc: http.NewResponseController(w), script: script}
	if !script.SkipBody {
		a.malformed = json.Unmarshal(body, &a.req)
	}
	if a.script.Tokens == nil {
		a.script.Tokens = []string{"Hello", ",", " world", "!"}
	}
	for _, m := range a.req.Messages {
		a.usage.PromptTokens += len(strings.Fields(string(m.Content)))
	}
	a.usage.CompletionTokens = len(a.script.Tokens)
	a.usage.TotalTokens = a.usage.PromptTokens + a.usage.CompletionTokens
	a.base = completion{
		ID: "chatcmpl-" + strconv.FormatInt(seen.At.UnixNano(), 36), Created: seen.At.Unix(),
		Model: a.req.Model, SystemFingerprint: s.name,
	}
	if !a.run() {
		s.left(r, a.sent)
	}
}

// run follows the script and reports false if the client has left.
func (a *reply) run() bool {
	if len(a.script.EarlyHints) > 0 {
		maps.Copy(a.w.Header(), a.script.EarlyHints)
		a.w.WriteHeader(http.StatusEarlyHints)
		for name := range a.script.EarlyHints {
			a.w.Header().Del(name)
		}
	}
	if a.script.Hang {
		a.s.hang(a.r.Context())
		return false
	}
	if !a.s.pause(a.r.Context(), a.script.HeadDelay) {
		return false
	}
	maps.Copy(a.w.Header(), a.script.Header)
	switch {
	case a.script.Status >= http.StatusBadRequest:
		writeError(a.w, a.script.Status, "scripted")
		return true
	case a.malformed != nil:
		writeError(a.w, http.StatusBadRequest, "the body is no chat completions request: "+a.malformed.Error())
		return true
	case a.req.Stream:
		return a.stream()
	}
	return a.whole()
}

// whole answers with one JSON body after the time that all tokens take.
func (a *reply) whole() bool {
	for range a.script.Tokens {
		if !a.s.pause(a.r.Context(), a.script.Delay) {
			return false
		}
		a.sent++
	}
	out := a.base
	out.Object = "chat.completion"
	out.Choices = []choice{{
		Message:      &message{Role: "assistant", Content: strings.Join(a.script.Tokens, "")},
		FinishReason: new("stop"),
	}}
	out.Usage = &a.usage
	body, err := json.Marshal(out)
	if err != nil {
		writeError(a.w, http.StatusInternalServerError, err.Error())
		return true
	}
	a.w.Header().Set("Content-Type", "application/json")
	a.w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	a.w.WriteHeader(max(a.script.Status, http.StatusOK))
	if a.script.AbortAfter != 0 {
		if a.script.AbortAfter > 0 {
			_, _ = a.w.Write(body[:len(body)/2])
		}
		a.cut()
		return true
	}
	_, err = a.w.Write(body)
	return err == nil
}

// stream answers with server-sent events.
func (a *reply) stream() bool {
	h := a.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-cache")
	for _, name := range slices.Sorted(maps.Keys(a.script.Trailer)) {
		h.Add("Trailer", name)
	}
	a.w.WriteHeader(max(a.script.Status, http.StatusOK))
	if a.script.EarlyHead || a.script.AbortAfter < 0 {
		if a.rc.Flush() != nil {
			return false
		}
	}
	if a.script.AbortAfter < 0 {
		a.cut()
		return true
	}
	key := a.r.Header.Get(KeyHeader)
	if a.script.Gate {
		defer a.s.removeGate(key)
	}
	for i, token := range a.script.Tokens {
		if i > 0 && !a.confirmed(key) || !a.s.pause(a.r.Context(), a.script.Delay) {
			return false
		}
		delta := &message{Content: token}
		if i == 0 {
			delta.Role = "assistant"
		}
		if !a.event(choice{Delta: delta}, nil) {
			return false
		}
		a.sent++
		if a.sent == a.script.AbortAfter {
			a.cut()
			return true
		}
	}
	return a.confirmed(key) && a.finish()
}

// finish sends what comes after the last token.
func (a *reply) finish() bool {
	if !a.event(choice{Delta: &message{}, FinishReason: new("stop")}, nil) {
		return false
	}
	if a.req.StreamOptions.IncludeUsage && !a.event(choice{}, &a.usage) {
		return false
	}
	_, err := fmt.Fprint(a.w, "data: [DONE]\n\n")
	maps.Copy(a.w.Header(), a.script.Trailer)
	return err == nil && a.rc.Flush() == nil
}

// event sends one chunk; one with usage has no choice.
func (a *reply) event(c choice, u *usage) bool {
	out := a.base
	out.Object = "chat.completion.chunk"
	out.Choices = []choice{c}
	if u != nil {
		out.Choices, out.Usage = []choice{}, u
	}
	data, err := json.Marshal(out)
	if err != nil {
		return false
	}
	if _, err := fmt.Fprintf(a.w, "data: %s\n\n", data); err != nil {
		return false
	}
	return a.rc.Flush() == nil
}

// confirmed waits at the gate, if there is one, and reports false if the
// client leaves meanwhile.
func (a *reply) confirmed(key string) bool {
	if !a.script.Gate {
		return true
	}
	select {
	case <-a.s.gate(key): // nil, which never comes, if there are too many
		return true
	case <-a.r.Context().Done():
	case <-a.s.closing:
	}
	return false
}

// cut closes the connection in the middle of the body.
func (a *reply) cut() {
	_ = a.rc.Flush()
	conn, _, err := a.rc.Hijack()
	if err != nil {
		return
	}
	if tcp, ok := conn.(*net.TCPConn); ok && a.script.Reset {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

// writeError answers with an error in the form of the API.
func writeError(w http.ResponseWriter, status int, text string) {
	writeJSON(w, status, map[string]any{"error": map[string]any{
		"message": text, "type": "scripted_error", "param": nil, "code": status,
	}})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client may be gone
}

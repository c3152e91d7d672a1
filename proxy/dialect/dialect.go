// Package dialect knows how each API family that edge stands in front of says
// things. So far that is what an error looks like: a client library shows its
// user the message only when the body has the shape it parses.
//
//	family := dialect.Of("/v1/messages", "application/json")
//	reply := family.Error(dialect.Error{Status: 503, Reason: "no_endpoint", Message: "no endpoint is available"})
//	// 503, {"type":"error","error":{"type":"overloaded_error",…
//
// The package knows nothing of requests or connections, so every engine and
// every test may use it.
package dialect

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
)

// Family is a set of paths whose clients expect the same shapes.
type Family uint8

// The families that edge tells apart.
const (
	Problem   Family = iota // RFC 9457 problem+json, for everything else
	OpenAI                  // /v1/…
	Anthropic               // /v1/messages…
	Ollama                  // /api/…
	GRPC                    // content type application/grpc
)

// String returns the family's name as it is written in logs.
func (f Family) String() string {
	switch f {
	case OpenAI:
		return "openai"
	case Anthropic:
		return "anthropic"
	case Ollama:
		return "ollama"
	case GRPC:
		return "grpc"
	case Problem:
	}
	return "problem"
}

// Of returns the family of a request by its path and its content type.
func Of(path, contentType string) Family {
	switch {
	case IsGRPC(contentType):
		return GRPC
	case under(path, "/v1/messages"):
		return Anthropic
	case under(path, "/v1"):
		return OpenAI
	case under(path, "/api"):
		return Ollama
	}
	return Problem
}

// IsGRPC reports whether a content type is gRPC's, with any message encoding
// after it (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md).
// gRPC-Web is not meant: it is ordinary HTTP to a proxy.
func IsGRPC(contentType string) bool {
	const grpc = "application/grpc"
	if len(contentType) < len(grpc) || !strings.EqualFold(contentType[:len(grpc)], grpc) {
		return false
	}
	return len(contentType) == len(grpc) || contentType[len(grpc)] == '+' || contentType[len(grpc)] == ';'
}

// under reports whether path is prefix or lies below it.
func under(path, prefix string) bool {
	return strings.HasPrefix(path, prefix) && (len(path) == len(prefix) || path[len(prefix)] == '/')
}

// Error is what a client is told. Nothing in it may name an address, a
// configuration value or an internal cause.
type Error struct {
	Status    int    // HTTP status
	Reason    string // stable snake_case word that programs may compare
	Message   string // one sentence for people
	RequestID string // "" leaves it out
}

// Reply is an error ready to be written.
type Reply struct {
	Status      int
	ContentType string
	Body        []byte
	Fields      [][2]string // further response fields, gRPC's status for one
}

// Error returns e in the words of f.
func (f Family) Error(e Error) Reply {
	switch f {
	case GRPC:
		return grpcError(e)
	case OpenAI:
		return jsonError(e, "application/json", openAIError{openAIDetail{
			Message: e.Message, Type: openAIType(e.Status), Code: e.Reason,
		}})
	case Anthropic:
		return jsonError(e, "application/json", anthropicError{
			Type:      "error",
			Error:     anthropicDetail{Type: anthropicType(e.Status), Message: e.Message},
			RequestID: e.RequestID,
		})
	case Ollama:
		return jsonError(e, "application/json", ollamaError{Error: e.Message})
	case Problem:
	}
	return jsonError(e, "application/problem+json", problem{
		Type: "about:blank", Title: http.StatusText(e.Status), Status: e.Status,
		Detail: e.Message, Reason: e.Reason, RequestID: e.RequestID,
	})
}

// openAIError is the shape of https://platform.openai.com/docs/guides/error-codes
// as the official clients parse it: param is always there.
type openAIError struct {
	Error openAIDetail `json:"error"`
}

type openAIDetail struct {
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Param   *string `json:"param"`
	Code    string  `json:"code"`
}

// anthropicError is the shape of https://docs.anthropic.com/en/api/errors.
type anthropicError struct {
	Type      string          `json:"type"`
	Error     anthropicDetail `json:"error"`
	RequestID string          `json:"request_id,omitempty"`
}

type anthropicDetail struct {
	Type    string `json:"type"`
	Message string `json:"message"`
}

// ollamaError is what api.StatusError of ollama's client reads.
type ollamaError struct {
	Error string `json:"error"`
}

// problem is RFC 9457; reason and request_id are extension members (section 3.2).
type problem struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail,omitempty"`
	Reason    string `json:"reason"`
	RequestID string `json:"request_id,omitempty"`
}

func jsonError(e Error, contentType string, body any) Reply {
	data, err := json.Marshal(body)
	if err != nil { // unreachable: the shapes above hold strings and numbers only
		data = []byte(`{}`)
	}
	return Reply{Status: e.Status, ContentType: contentType, Body: append(data, '\n')}
}

func openAIType(status int) string {
	switch {
	case status == http.StatusTooManyRequests:
		return "rate_limit_error"
	case status < http.StatusInternalServerError:
		return "invalid_request_error"
	}
	return "server_error"
}

func anthropicType(status int) string {
	switch status {
	case http.StatusUnauthorized:
		return "authentication_error"
	case http.StatusForbidden:
		return "permission_error"
	case http.StatusNotFound:
		return "not_found_error"
	case http.StatusRequestEntityTooLarge:
		return "request_too_large"
	case http.StatusTooManyRequests:
		return "rate_limit_error"
	case http.StatusServiceUnavailable:
		return "overloaded_error"
	case http.StatusGatewayTimeout:
		return "timeout_error"
	}
	if status < http.StatusInternalServerError {
		return "invalid_request_error"
	}
	return "api_error"
}

// grpcError makes a Trailers-Only response. A misdirected request keeps its
// HTTP status, because it is the HTTP client below gRPC that must see 421 and
// open another connection (RFC 9110 section 15.5.20).
func grpcError(e Error) Reply {
	status := http.StatusOK
	if e.Status == http.StatusMisdirectedRequest {
		status = e.Status
	}
	return Reply{
		Status:      status,
		ContentType: "application/grpc",
		Fields: [][2]string{
			{"grpc-status", strconv.Itoa(grpcCode(e.Status))},
			{"grpc-message", grpcMessage(e.Reason + ": " + e.Message)},
		},
	}
}

// grpcCode maps a status as
// https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md does
// where that page speaks, and to the code of the same meaning elsewhere.
func grpcCode(status int) int {
	const (
		deadlineExceeded  = 4
		permissionDenied  = 7
		resourceExhausted = 8
		unimplemented     = 12
		internal          = 13
		unavailable       = 14
		unauthenticated   = 16
	)
	switch status {
	case http.StatusUnauthorized:
		return unauthenticated
	case http.StatusForbidden:
		return permissionDenied
	case http.StatusNotFound:
		return unimplemented
	case http.StatusRequestEntityTooLarge, http.StatusRequestHeaderFieldsTooLarge:
		return resourceExhausted
	case http.StatusRequestTimeout, http.StatusGatewayTimeout:
		return deadlineExceeded
	case http.StatusMisdirectedRequest, http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable:
		return unavailable
	}
	return internal
}

// grpcMessage percent-encodes as the protocol wants: all but printable ASCII,
// and the percent sign itself.
func grpcMessage(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c >= ' ' && c <= '~' && c != '%' {
			b.WriteByte(c)
		} else {
			const hex = "0123456789ABCDEF"
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	return b.String()
}

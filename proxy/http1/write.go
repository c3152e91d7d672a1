package http1

import (
	"fmt"
	"strconv"

	"edge/proxy/exchange"

	"golang.org/x/net/http/httpguts"
)

const (
	methodHead    = "HEAD"
	methodConnect = "CONNECT"
)

func unsendable(what string) error {
	return fmt.Errorf("%w: invalid %s", exchange.ErrUnsendable, what)
}

// appendHead appends the head of the request. Every byte that comes from the
// call is looked at: nothing in it can end a line (RFC 9112 11.1). expect and
// last say whether a 100 is waited for, and whether the connection ends with
// this request.
func appendHead(b []byte, call *exchange.Call, length int64, expect, last bool) ([]byte, error) {
	switch {
	case !isToken(call.Method) || call.Method == methodConnect:
		return b, unsendable("method")
	case !isTarget(call.Target):
		return b, unsendable("target")
	case !httpguts.ValidHostHeader(call.Host):
		return b, unsendable("host")
	}
	b = append(b, call.Method...)
	b = append(b, ' ')
	b = append(b, call.Target...)
	b = append(b, " HTTP/1.1\r\n"...)
	b = appendField(b, "Host", call.Host)
	trailers := false
	for i := range call.Header {
		f := &call.Header[i]
		if !isToken(f.Name) || !isFieldValue(f.Value) {
			return b, unsendable("field")
		}
		switch {
		case !isFraming(f.Name):
			b = appendField(b, f.Name, f.Value)
		case equalFold(f.Name, "te"):
			trailers = trailers || hasToken(f.Value, "trailers")
		case equalFold(f.Name, "trailer") && length < 0 && call.Trailer != nil && announces(f.Value):
			b = appendField(b, "Trailer", f.Value)
		}
	}
	b = appendFraming(b, call, length, expect)
	return append(appendConnection(b, call.Upgrade, trailers, last), "\r\n"...), nil
}

// isTarget reports whether s is in origin-form or "*" (RFC 9112 3.2), as far as
// the line depends on it.
func isTarget(s string) bool {
	return s == "*" || s != "" && s[0] == '/' && isAll(s, uriByte)
}

// isFraming reports whether a field belongs to the connection or to the framing.
func isFraming(name string) bool {
	switch len(name) {
	case 2:
		return equalFold(name, "te")
	case 4:
		return equalFold(name, "host")
	case 6:
		return equalFold(name, "expect")
	case 7:
		return equalFold(name, "trailer") || equalFold(name, "upgrade")
	case 10:
		return equalFold(name, "connection") || equalFold(name, "keep-alive")
	case 14:
		return equalFold(name, "content-length")
	case 16:
		return equalFold(name, "proxy-connection")
	case 17:
		return equalFold(name, "transfer-encoding")
	}
	return false
}

// announces reports whether a Trailer field names only what may be sent there.
func announces(list string) bool {
	for list != "" {
		var name string
		if name, list = nextToken(list); !isToken(name) || !httpguts.ValidTrailerHeader(name) {
			return false
		}
	}
	return true
}

func appendField(b []byte, name, value string) []byte {
	b = append(b, name...)
	b = append(b, ": "...)
	b = append(b, value...)
	return append(b, "\r\n"...)
}

func appendFraming(b []byte, call *exchange.Call, length int64, expect bool) []byte {
	switch {
	case length < 0:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	case length > 0 || saysEmpty(call.Method):
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, length, 10)
		b = append(b, "\r\n"...)
	}
	if expect {
		b = append(b, "Expect: 100-continue\r\n"...)
	}
	return b
}

// saysEmpty reports whether a request of that method says that it has no body,
// as one is expected of it (RFC 9110 8.6).
func saysEmpty(method string) bool {
	return method == "POST" || method == "PUT" || method == "PATCH"
}

func appendConnection(b []byte, upgrade, trailers, last bool) []byte {
	if upgrade {
		b = append(b, "Upgrade: websocket\r\n"...)
	}
	if trailers {
		b = append(b, "TE: trailers\r\n"...)
	}
	if !upgrade && !trailers && !last {
		return b
	}
	b = append(b, "Connection: "...)
	sep := ""
	for _, o := range [...]struct {
		set   bool
		token string
	}{{upgrade, "Upgrade"}, {trailers, "TE"}, {last && !upgrade, "close"}} {
		if o.set {
			b = append(append(b, sep...), o.token...)
			sep = ", "
		}
	}
	return append(b, "\r\n"...)
}

package proxy

import (
	"crypto/rand"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"edge/config"
	"edge/hostname"
	"edge/proxy/dialect"
	"edge/proxy/exchange"
)

const (
	// maxFields bounds the field lines of a request; each costs more than its
	// bytes, at the backend too.
	maxFields = 200
	// maxRequestID is the length that a trusted peer's X-Request-Id may have.
	maxRequestID = 128

	fieldRequestID = "X-Request-Id"
	http11         = "HTTP/1.1"
)

// admit checks what net/http lets through, and makes the request one that may
// be forwarded: nothing of it belongs to the client's connection any more, and
// what it says of where it came from is true. It returns the canonical host.
func admit(e *exchange.Exchange, l *config.Listener) (host string, reason Reason) {
	trusted := isTrusted(l.Trusted, e.Conn.Peer.Addr())
	identify(e, trusted)
	if e.Length < 0 || e.Conn.Protocol != http11 {
		// net/http has removed a Content-Length that stood beside chunked and,
		// in HTTP/1.0, a Transfer-Encoding with the body it announced, so that
		// what follows may be no request (RFC 9112 section 6.1: close).
		closeAfter(e)
	}
	switch {
	case !speaks(l.Protocols, e.Conn.Protocol):
		return "", BadRequest
	case e.Method == http.MethodConnect || e.Method == http.MethodTrace:
		return "", MethodNotAllowed
	case len(e.Header) > maxFields:
		return "", HeadersTooLarge
	case !validTarget(originForm(e)) || !validHost(e) || !validLength(e):
		return "", BadRequest
	}
	host, ok := hostname.FromHost(e.Host)
	if !ok {
		return "", BadRequest
	}
	clean(e)
	forwarded(e, trusted)
	return host, ""
}

func isTrusted(prefixes []config.Prefix, peer netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(peer) })
}

// speaks refuses HTTP/1 on a listener for HTTP/2 only; TLS without ALPN gets there.
func speaks(protocols []config.Protocol, protocol string) bool {
	want := config.H1
	if strings.HasPrefix(protocol, "HTTP/2") {
		want = config.H2
	}
	return slices.Contains(protocols, want)
}

// identify gives the request its id: the peer's own when the peer is trusted,
// else a fresh one. The client is told.
func identify(e *exchange.Exchange, trusted bool) {
	if id := e.Header.Get(fieldRequestID); trusted && validRequestID(id) {
		e.RequestID = id
	} else {
		e.RequestID = rand.Text()
	}
	e.Reply.Set(fieldRequestID, e.RequestID)
}

func validRequestID(id string) bool {
	return id != "" && len(id) <= maxRequestID &&
		strings.IndexFunc(id, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}

// closeAfter has an HTTP/1 connection end with the response. On HTTP/2 there
// is nothing to end: framing is not in doubt there.
func closeAfter(e *exchange.Exchange) {
	if !strings.HasPrefix(e.Conn.Protocol, "HTTP/2") {
		leave(e)
	}
}

// leave has a connection end with the response; on HTTP/2 it takes no more
// requests, and what is under way goes on.
func leave(e *exchange.Exchange) { e.Reply.Set("Connection", "close") }

// validHost refuses a request with two opinions on its host. Host may stand
// beside :authority, and only equal values are harmless (RFC 9113 section
// 8.3.1). The engines of today see to it themselves; what follows from a
// mistake in one is too bad to rely on them.
func validHost(e *exchange.Exchange) bool {
	n := 0
	for host := range e.Header.Values("host") {
		if n++; n > 1 || host != e.Host {
			return false
		}
	}
	return true
}

// validLength refuses a Content-Length that is repeated, malformed, or not the
// length of the body. The HTTP/2 server takes a malformed one for 0.
func validLength(e *exchange.Exchange) bool {
	n := 0
	for value := range e.Header.Values("content-length") {
		length, err := strconv.ParseUint(value, 10, 63)
		if n++; n > 1 || err != nil || value[0] == '+' || int64(length) != e.Length {
			return false
		}
	}
	return true
}

// clean removes the fields that are about the client's connection (RFC 9110
// section 7.6.1), framing, and those that pretend to be another. Two of them
// stay because forward needs to see them: "Upgrade: websocket" of a handshake
// (RFC 6455 section 4.1; h2c is never passed on) and gRPC's "TE: trailers".
func clean(e *exchange.Exchange) {
	upgrade := isWebsocket(e)
	grpc := dialect.IsGRPC(e.Header.Get("content-type"))
	named := connectionNamed(e.Header)
	e.Header = slices.DeleteFunc(e.Header, func(f exchange.Field) bool {
		switch {
		case strings.EqualFold(f.Name, "upgrade"):
			return !upgrade
		case strings.EqualFold(f.Name, "te"):
			return !grpc
		case strings.EqualFold(f.Name, "expect"):
			return !strings.EqualFold(f.Value, "100-continue") // forward asks the backend itself
		case isHopByHop(f.Name), pretends(f.Name):
			return true
		}
		return slices.ContainsFunc(named, func(n string) bool { return strings.EqualFold(n, f.Name) })
	})
	if grpc && e.Header.Has("te") {
		e.Header.Set("TE", "trailers")
	}
}

// cleanTrailer removes what admit would not let through as a field of the head:
// many applications merge the two.
func cleanTrailer(f exchange.Fields) exchange.Fields {
	return slices.DeleteFunc(f, func(f exchange.Field) bool {
		return isHopByHop(f.Name) || vouched(f.Name) || pretends(f.Name) || strings.EqualFold(f.Name, fieldRequestID)
	})
}

// connectionNamed returns the fields that Connection declares to be hop-by-hop.
func connectionNamed(fields exchange.Fields) []string {
	var names []string
	for value := range fields.Values("connection") {
		for name := range strings.SplitSeq(value, ",") {
			if name = strings.TrimSpace(name); name != "" && !strings.EqualFold(name, "te") && !strings.EqualFold(name, "upgrade") {
				names = append(names, name)
			}
		}
	}
	return names
}

// isHopByHop reports whether a field is about one connection, or is one that
// the next connection gets from its own engine.
func isHopByHop(name string) bool {
	switch len(name) {
	case len("te"):
		return strings.EqualFold(name, "te")
	case len("host"):
		return strings.EqualFold(name, "host")
	case len("expect"):
		return strings.EqualFold(name, "expect")
	case len("trailer"):
		return strings.EqualFold(name, "trailer") || strings.EqualFold(name, "upgrade")
	case len("connection"):
		return strings.EqualFold(name, "connection") || strings.EqualFold(name, "keep-alive")
	case len("content-length"):
		return strings.EqualFold(name, "http2-settings") || strings.EqualFold(name, "content-length")
	case len("proxy-connection"):
		return strings.EqualFold(name, "proxy-connection")
	case len("transfer-encoding"):
		return strings.EqualFold(name, "transfer-encoding")
	case len("proxy-authenticate"):
		return strings.EqualFold(name, "proxy-authenticate")
	case len("proxy-authorization"):
		return strings.EqualFold(name, "proxy-authorization")
	}
	return false
}

// pretends reports whether name, with "_" read as "-" the way CGI and WSGI
// applications do, is a field that edge vouches for or that frames a message.
func pretends(name string) bool {
	if !strings.Contains(name, "_") {
		return false
	}
	name = strings.ReplaceAll(name, "_", "-")
	return vouched(name) || isHopByHop(name) || strings.EqualFold(name, fieldRequestID)
}

// vouched reports whether name is a field in which a proxy says where a request
// came from.
func vouched(name string) bool {
	const prefix = "x-forwarded-"
	return len(name) >= len(prefix) && strings.EqualFold(name[:len(prefix)], prefix) ||
		strings.EqualFold(name, "forwarded") || strings.EqualFold(name, "x-real-ip")
}

// forwarded writes the fields that tell a backend where the request came from.
// What an untrusted peer says is removed. A trusted one is another proxy: its
// X-Forwarded-For and Forwarded (RFC 7239) are extended by its own address, its
// word on protocol and host stands. Forwarded is not made, only kept up.
func forwarded(e *exchange.Exchange, trusted bool) {
	peer := e.Conn.Peer.Addr().String()
	if !trusted {
		e.Header = slices.DeleteFunc(e.Header, func(f exchange.Field) bool { return vouched(f.Name) })
		e.Header = append(e.Header,
			exchange.Field{Name: "X-Forwarded-For", Value: peer},
			exchange.Field{Name: "X-Forwarded-Proto", Value: "https"},
			exchange.Field{Name: "X-Forwarded-Host", Value: e.Host},
		)
		e.Header.Set(fieldRequestID, e.RequestID)
		return
	}
	extend(&e.Header, "X-Forwarded-For", peer, true)
	node := peer
	if e.Conn.Peer.Addr().Is6() {
		node = `"[` + peer + `]"`
	}
	extend(&e.Header, "Forwarded", "for="+node+";proto=https", false)
	if !e.Header.Has("X-Forwarded-Proto") {
		e.Header.Add("X-Forwarded-Proto", "https")
	}
	if !e.Header.Has("X-Forwarded-Host") {
		e.Header.Add("X-Forwarded-Host", e.Host)
	}
	e.Header.Set(fieldRequestID, e.RequestID)
}

// extend appends value to the list in a field, which becomes one line. Without
// such a field it adds one if create.
func extend(fields *exchange.Fields, name, value string, create bool) {
	if !fields.Has(name) {
		if create {
			fields.Add(name, value)
		}
		return
	}
	fields.Set(name, strings.Join(append(slices.Collect(fields.Values(name)), value), ", "))
}

// isWebsocket reports whether e is the handshake of RFC 6455: GET on HTTP/1.1,
// upgrade named by Connection, websocket and nothing else wanted, no body.
func isWebsocket(e *exchange.Exchange) bool {
	if e.Method != http.MethodGet || e.Conn.Protocol != http11 || e.Length != 0 {
		return false
	}
	wanted := 0
	for value := range e.Header.Values("upgrade") {
		if wanted++; wanted > 1 || !strings.EqualFold(strings.TrimSpace(value), "websocket") {
			return false
		}
	}
	if wanted == 0 {
		return false
	}
	for value := range e.Header.Values("connection") {
		for token := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(strings.TrimSpace(token), "upgrade") {
				return true
			}
		}
	}
	return false
}

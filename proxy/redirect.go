package proxy

import (
	"net"
	"net/http"
	"strconv"
	"strings"

	"edge/hostname"
	"edge/proxy/exchange"
)

// redirects is the handler of redirect listeners: every request is sent to the
// same host and target on https. GET and HEAD get 301, which every client
// follows; the others 308, which keeps method and body (RFC 9110 section 15.4.9).
//
// A client that came to port 80 goes to port 443, whatever edge is bound to:
// behind a port mapping the bound ports are nobody else's business. One that
// named another port sees the real ones, and goes to the TLS listener's.
func (s *Server) redirects() exchange.Handler {
	return stack(observe(s), rescue(s))(func(e *exchange.Exchange) {
		host, ok := hostname.FromHost(e.Host)
		target := originForm(e)
		if !ok || !validTarget(target) {
			fail(e, BadRequest, nil)
			return
		}
		port := s.table.Load().httpsPort
		if port == 0 {
			fail(e, NoRoute, nil)
			return
		}
		if onDefaultPort(e.Host) {
			port = portHTTPS
		}
		e.Status = http.StatusPermanentRedirect
		if e.Method == http.MethodGet || e.Method == http.MethodHead {
			e.Status = http.StatusMovedPermanently
		}
		e.Reply.Set("Location", httpsURL(host, port)+target)
		e.Reply.Set("Content-Length", "0")
		closeAfter(e)
		_ = e.Flush()
	})
}

const portHTTPS = 443

// onDefaultPort reports whether an authority that FromHost accepts has no port,
// or http's.
func onDefaultPort(authority string) bool {
	_, port, err := net.SplitHostPort(authority)
	return err != nil || port == "" || port == "80"
}

func httpsURL(host string, port int) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port == portHTTPS {
		return "https://" + host
	}
	return "https://" + host + ":" + strconv.Itoa(port)
}

package proxy

import (
	"net/http"
	"strconv"
	"strings"

	"edge/hostname"
	"edge/proxy/exchange"
)

// redirects is the handler of redirect listeners: every request is sent to the
// same host and target on https. GET and HEAD get 301, which every client
// follows; the others 308, which keeps method and body (RFC 9110 section 15.4.9).
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

func httpsURL(host string, port int) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port == 443 {
		return "https://" + host
	}
	return "https://" + host + ":" + strconv.Itoa(port)
}

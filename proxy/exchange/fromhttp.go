package exchange

import "net/http"

// FromHTTP serves a foreign handler.
func FromHTTP(h http.Handler) Handler { return nil }

package exchange

import "net/http"

// ToHTTP serves h with net/http as the engine.
func ToHTTP(h Handler, conn func(*http.Request) *Conn) http.Handler { return nil }

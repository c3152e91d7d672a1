package proxy

import (
	"edge/config"
	"edge/proxy/exchange"
	"edge/proxy/upstream"
)

// route is a configured route that is alive: with its pool and its layers.
// It is immutable.
type route struct {
	config *config.Route
	pool   *upstream.Pool
	handle exchange.Handler
}

func (s *Server) newRoute(c *config.Route, pool *upstream.Pool) *route {
	r := &route{config: c, pool: pool}
	r.handle = layers(s, r)
	return r
}

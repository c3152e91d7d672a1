package config

import (
	"time"

	"go.yaml.in/yaml/v4"
)

// healthTimeout is the longest a health check may take.
const healthTimeout = 5 * time.Second

func (b *builder) newPool(name string, pos Pos) *Pool {
	return &Pool{
		Name:    name,
		Balance: RoundRobin,
		Retry:   Retry{Attempts: 2, Replay: mib},
		Connect: b.connect,
		Pos:     pos,
	}
}

func (b *builder) pools(v value) {
	v.named("pool", func(name string, v value) {
		p := b.newPool(name, v.pos())
		b.cfg.Pools[name] = p
		present := v.object(fields{
			"endpoints": p.endpoints,
			"balance":   p.balance,
			"health":    p.health,
			"retry":     p.retry,
			"tls":       b.poolTLS(p),
		}, "engine", "protocol", "concurrency", "ejection", "slow_start", "on_client_abort", "host", "auth")
		v.need(present, "endpoints")
	})
}

func (p *Pool) endpoints(v value) {
	seen := map[string]bool{}
	for _, item := range v.items() {
		e := Endpoint{Weight: 1}
		if item.node.Kind == yaml.MappingNode {
			present := item.object(fields{
				"url":    as(&e.URL, endpoint),
				"weight": as(&e.Weight, count(1000)),
			}, "dns", "refresh")
			if !present.any("dns") {
				item.need(present, "url")
			}
		} else {
			as(&e.URL, endpoint)(item)
		}
		if seen[e.URL] && e.URL != "" {
			v.d.warn(item.path, sameEndpointTwice(e.URL))
		}
		seen[e.URL] = true
		p.Endpoints = append(p.Endpoints, e)
	}
}

func (p *Pool) balance(v value) {
	if v.node.Kind == yaml.MappingNode { // {hash: header.x-user}
		v.object(nil, "hash")
		return
	}
	as(&p.Balance, choice([]Balance{RoundRobin, LeastRequests}, "random", "p2c", "ai"))(v)
}

func (p *Pool) health(v value) {
	h := &Health{Interval: 5 * time.Second, Rise: 2, Fall: 3}
	p.Health = h
	v.need(v.object(fields{
		"path":     as(&h.Path, checkTarget),
		"interval": as(&h.Interval, duration(10*time.Millisecond, day)),
		"rise":     as(&h.Rise, count(100)),
		"fall":     as(&h.Fall, count(100)),
	}, "warmup"), "path")
	h.Timeout = min(h.Interval, healthTimeout)
}

func (p *Pool) retry(v value) {
	var on []string
	v.object(fields{
		"attempts": as(&p.Retry.Attempts, count(10)),
		"on":       list(&on, choice([]string{"connect_failure"}, "idle_race", "503")),
		"replay":   as(&p.Retry.Replay, size(0, gib)),
	})
}

func (b *builder) poolTLS(p *Pool) take {
	return func(v value) {
		v.object(fields{"ca": as(&p.CA, func(text string) (string, *refusal) {
			if text == "system" {
				return "", nil
			}
			return b.path(text)
		})})
	}
}

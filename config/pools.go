package config

import (
	"fmt"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// healthTimeout is the longest a health check may take.
const healthTimeout = 5 * time.Second

func (b *builder) newPool(name string, pos Pos) *Pool {
	return &Pool{
		Name:     name,
		Protocol: PoolH1,
		Balance:  RoundRobin,
		Retry:    Retry{Attempts: 2, Replay: mib},
		Connect:  b.connect,
		Pos:      pos,
	}
}

func (b *builder) pools(v value) {
	v.named("pool", func(name string, v value) {
		p := b.newPool(name, v.pos())
		b.cfg.Pools[name] = p
		present := v.object(fields{
			"endpoints": p.endpoints,
			"protocol":  as(&p.Protocol, poolProtocol),
			"balance":   p.balance,
			"health":    p.health,
			"retry":     p.retry,
			"tls":       b.poolTLS(p),
		}, "engine", "concurrency", "ejection", "slow_start", "on_client_abort", "host", "auth")
		v.need(present, "endpoints")
		b.checkSchemes(p, v.path)
	})
}

// poolProtocol takes a protocol; gRPC is none, but it says which one is meant.
func poolProtocol(text string) (PoolProtocol, *refusal) {
	if strings.HasPrefix(strings.ToLower(text), "grpc") {
		return "", grpcIsNoProtocol(text)
	}
	return choice([]PoolProtocol{PoolH1, PoolH2, PoolH2C})(text)
}

// checkSchemes demands that the schemes of the endpoints fit what else the pool
// says. One message does for all of them: the remedy is the same.
func (b *builder) checkSchemes(p *Pool, path string) {
	unfit, tls := -1, false
	for i, e := range p.Endpoints {
		scheme, _, _ := strings.Cut(e.URL, ":")
		tls = tls || scheme != "http" // or it is refused already
		if unfit < 0 && (p.Protocol == PoolH2 && scheme == "http" || p.Protocol == PoolH2C && scheme == "https") {
			unfit = i
		}
	}
	if unfit >= 0 {
		b.refuse(fmt.Sprintf("%s.endpoints[%d]", path, unfit), wrongScheme(p.Protocol))
	}
	if p.ServerName != "" && !tls && len(p.Endpoints) > 0 {
		b.refuse(path+".tls.server_name", nameWithoutTLS())
	}
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
		v.object(fields{
			"ca": as(&p.CA, func(text string) (string, *refusal) {
				if text == "system" {
					return "", nil
				}
				return b.path(text)
			}),
			"server_name": as(&p.ServerName, serverName),
		})
	}
}

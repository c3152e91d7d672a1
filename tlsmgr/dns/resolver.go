package dns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	miekg "github.com/miekg/dns"
)

// Bounds of queries.
const (
	dnsPort      = "53"
	queryTimeout = 2 * time.Second  // of one message and its answer
	queryTries   = 3                // the last one over TCP
	askTimeout   = 10 * time.Second // of one question to all resolvers
	maxResolvers = 8
	maxConf      = 64 << 10 // bytes of /etc/resolv.conf
	udpSize      = 1232     // EDNS buffer that is not fragmented (DNS flag day 2020)
)

// errNoResolver says that no resolver gave a usable answer.
var errNoResolver = errors.New("no resolver answered")

// client sends single DNS queries. At most maxParallel are under way.
type client struct {
	slots   chan struct{}
	timeout time.Duration // of one message and its answer
}

func newClient() *client {
	return &client{slots: make(chan struct{}, maxParallel), timeout: queryTimeout}
}

// queryTXT asks one server up to queryTries times.
func (c *client) queryTXT(ctx context.Context, server, name string, recurse bool) (*miekg.Msg, error) {
	return c.query(ctx, server, name, miekg.TypeTXT, recurse)
}

// query is queryTXT for any type.
func (c *client) query(ctx context.Context, server, name string, qtype uint16, recurse bool) (*miekg.Msg, error) {
	var last error
	for n := range queryTries {
		answer, err := c.try(ctx, n, server, name, qtype, recurse)
		if err == nil {
			return answer, nil
		}
		if last == nil || !isTimeout(err) { // "connection refused" tells more than a timeout
			last = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, last
}

// try asks a server for the nth time: over UDP, and the last time over TCP, which
// also gets through where UDP is filtered. A truncated answer is fetched again
// over TCP (RFC 7766).
func (c *client) try(ctx context.Context, n int, server, name string, qtype uint16, recurse bool) (*miekg.Msg, error) {
	if n < queryTries-1 {
		answer, err := c.once(ctx, "udp", server, name, qtype, recurse)
		if err != nil || !answer.Truncated {
			return answer, err
		}
	}
	return c.once(ctx, "tcp", server, name, qtype, recurse)
}

// once sends one message. Cancelling ctx ends it at once; miekg/dns by itself
// heeds only the deadline.
func (c *client) once(ctx context.Context, network, server, name string, qtype uint16, recurse bool) (*miekg.Msg, error) {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	m := new(miekg.Msg).SetQuestion(name, qtype)
	m.RecursionDesired = recurse
	m.SetEdns0(udpSize, false)
	cl := &miekg.Client{Net: network, Timeout: c.timeout, UDPSize: udpSize}
	conn, err := cl.DialContext(ctx, server)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer func() {
		if stop() {
			_ = conn.Close()
		}
	}()
	answer, _, err := cl.ExchangeWithConnContext(ctx, m, conn)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, err
	case !answer.Response || len(answer.Question) != 1 || answer.Question[0].Qtype != qtype || !sameName(answer.Question[0].Name, name):
		return nil, errors.New("answer to another question")
	}
	return answer, nil
}

// ask puts one question to the resolvers until one answers with NOERROR or
// NXDOMAIN. They are asked in turn, so that one that is dead costs a single
// timeout. When none of them knows, those that did not refuse are asked again
// after a while: SERVFAIL is what a resolver says that could not reach a name
// server in time, and remembers for a second (RFC 9520, section 3.2). The error
// is an errNoResolver that names each of them.
func (s *Solver) ask(ctx context.Context, name string, qtype uint16) (*miekg.Msg, error) {
	answer, _, err := s.askBy(ctx, name, qtype)
	return answer, err
}

// askBy is ask and tells which resolver answered.
func (s *Solver) askBy(ctx context.Context, name string, qtype uint16) (answer *miekg.Msg, by string, err error) {
	servers, err := s.recursive()
	if err != nil {
		return nil, "", err
	}
	caller := ctx
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	said := make([]string, len(servers))
	useless := make([]bool, len(servers)) // it does not want to be asked
	for n := range queryTries {
		if n > 0 && (!slices.Contains(useless, false) || !pause(ctx, s.poll)) {
			break
		}
		for i, server := range servers {
			if useless[i] || said[i] != "" && ctx.Err() != nil {
				continue
			}
			answer, err := s.client.try(ctx, n, server, name, qtype, true)
			switch {
			case err != nil:
				said[i] = server + ": " + reason(err)
			case answer.Rcode == miekg.RcodeSuccess || answer.Rcode == miekg.RcodeNameError:
				return answer, server, nil
			default:
				said[i] = server + ": " + rcode(answer.Rcode)
				useless[i] = answer.Rcode != miekg.RcodeServerFailure
			}
		}
	}
	if errors.Is(caller.Err(), context.Canceled) {
		return nil, "", context.Cause(caller)
	}
	return nil, "", fmt.Errorf("look up %s %s: %w: %s", bare(name), miekg.TypeToString[qtype], errNoResolver, strings.Join(said, ", "))
}

// recursive returns the resolvers to use, as host:port.
func (s *Solver) recursive() ([]string, error) {
	if len(s.resolvers) > 0 {
		return s.resolvers, nil
	}
	return systemResolvers("/etc/resolv.conf")
}

// systemResolvers reads a resolv.conf(5).
func systemResolvers(path string) ([]string, error) {
	f, err := os.Open(path) //nolint:gosec // a constant, but for tests
	if err != nil {
		return nil, fmt.Errorf("%w: %w (set resolvers in the issuer)", errNoResolver, err)
	}
	defer f.Close() //nolint:errcheck // only read
	conf, err := miekg.ClientConfigFromReader(io.LimitReader(f, maxConf))
	if err != nil {
		return nil, fmt.Errorf("%w: read %s: %w (set resolvers in the issuer)", errNoResolver, path, err)
	}
	if len(conf.Servers) == 0 {
		return nil, fmt.Errorf("%w: %s names none (set resolvers in the issuer)", errNoResolver, path)
	}
	return withPorts(conf.Servers[:min(len(conf.Servers), maxResolvers)]), nil
}

// withPorts adds port 53 to addresses that have none.
func withPorts(servers []string) []string {
	out := make([]string, 0, len(servers))
	for _, s := range servers {
		if _, _, err := net.SplitHostPort(s); err != nil {
			s = net.JoinHostPort(strings.Trim(s, "[]"), dnsPort)
		}
		out = append(out, s)
	}
	return out
}

func sameName(a, b string) bool {
	return miekg.CanonicalName(a) == miekg.CanonicalName(b)
}

// bare is a name as people write it.
func bare(name string) string {
	return strings.TrimSuffix(name, ".")
}

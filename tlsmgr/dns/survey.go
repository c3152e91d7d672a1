package dns

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	miekg "github.com/miekg/dns"
)

// seen is what one address of a name server answered.
type seen struct {
	server  nameServer
	index   int // of the server: those of Authoritative.Servers have no name
	address string
	answer  *miekg.Msg // nil with an error
	err     error
}

// who names the server as messages do.
func (v seen) who() string {
	if v.server.name == "" {
		return v.address
	}
	return fmt.Sprintf("%s (%s)", bare(v.server.name), v.address)
}

// code is the response code, or why there is no answer.
func (v seen) code() string {
	if v.err != nil {
		return reason(v.err)
	}
	return rcode(v.answer.Rcode)
}

// usable says that the server knows whether the name exists.
func (v seen) usable() bool {
	return v.err == nil && (v.answer.Rcode == miekg.RcodeSuccess || v.answer.Rcode == miekg.RcodeNameError)
}

// survey puts one question to every address of the witnesses at once. Resolvers
// are asked to look it up, others for what they know themselves.
func (s *Solver) survey(ctx context.Context, servers []nameServer, name string, qtype uint16) []seen {
	return s.surveyBy(ctx, servers, name, qtype, s.authoritative.Off && len(s.authoritative.Servers) == 0)
}

func (s *Solver) surveyBy(ctx context.Context, servers []nameServer, name string, qtype uint16, recurse bool) []seen {
	var views []seen
	for i, ns := range servers {
		for _, address := range ns.addresses {
			views = append(views, seen{server: ns, index: i, address: address})
		}
	}
	var wg sync.WaitGroup
	for i := range views {
		v := &views[i]
		wg.Go(func() { v.answer, v.err = s.client.query(ctx, v.address, name, qtype, recurse) })
	}
	wg.Wait()
	return views
}

// chase returns the CNAME chain from name to its end, as a CA follows it: that of
// a wildcard too, unlike follow, which looks for the place to write to.
func (s *Solver) chase(ctx context.Context, name string) ([]string, error) {
	chain := []string{name}
	for range maxCNAMEs + 1 {
		name = chain[len(chain)-1]
		answer, err := s.ask(ctx, name, miekg.TypeCNAME)
		if err != nil {
			return chain, err
		}
		next := alias(answer, name)
		switch {
		case next == "":
			return chain, nil
		case slices.Contains(chain, next):
			return chain, fmt.Errorf("CNAME loop at %s", bare(next))
		}
		chain = append(chain, next)
	}
	return chain, fmt.Errorf("CNAME chain of more than %d links", maxCNAMEs)
}

// flat makes one line of joined errors.
func flat(err error) string {
	return strings.ReplaceAll(err.Error(), "\n", "; ")
}

package dns

import (
	"context"
	"strings"

	miekg "github.com/miekg/dns"
)

// Place is where the challenge record of a name belongs.
type Place struct {
	Name     string `json:"name"`     // _acme-challenge.NAME
	Target   string `json:"target"`   // the end of its CNAMEs; Name itself when there are none
	Zone     string `json:"zone"`     // that has Target
	Provider string `json:"provider"` // whose credentials write there
}

// Locate finds where the challenge record of a host name or wildcard belongs. It
// asks resolvers and writes nothing.
func (s *Solver) Locate(ctx context.Context, name string) (Place, error) {
	p := Place{Name: "_acme-challenge." + bare(miekg.CanonicalName(strings.TrimPrefix(name, "*.")))}
	at, err := s.locate(ctx, miekg.CanonicalName(p.Name))
	if err != nil {
		return p, err
	}
	p.Target, p.Zone, p.Provider = bare(at.target), bare(at.zone), at.provider.name
	return p, nil
}

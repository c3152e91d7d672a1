package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"edge/config"
	"edge/tlsmgr"
)

func certsPlanCommand(g *globals) *cobra.Command {
	var offline bool
	var s staging
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "Say which certificates the configuration needs, and what would be ordered now",
		Long: "Say which certificates the configuration needs, which of them serves each host, and what edge\n" +
			"would do about each now: order it and why, from which issuer, or when it is renewed.\n" +
			"It reads the storage, so that names are where they are; it shows where CNAMEs delegate\n" +
			"challenge records to, and how much of the limits that edge keeps to is used. Nothing is\n" +
			"ordered or written.\n\n" +
			"With --offline nothing is contacted: the plan for an empty storage. That is also what is\n" +
			"shown, with a warning, when the storage cannot be read.\n\n" +
			"With --staging each certificate is really ordered, from the staging directory of its issuer,\n" +
			"into a throwaway storage: proof that an order would succeed. See certs obtain --staging.",
		Example: "  edge certs plan --offline\n  edge certs plan -c new-routes.yaml\n  edge certs plan --staging -v",
		Args:    cobra.NoArgs,
		RunE: action(func(cmd *cobra.Command, _ []string) error {
			switch {
			case s.on && offline:
				return usage("--staging and --offline exclude each other")
			case s.on:
				return s.run(g, cmd, nil)
			case s.issuer != "":
				return usage("--issuer needs --staging")
			case offline:
				return planOffline(cmd, g)
			}
			return plan(cmd, g)
		}),
	}
	cmd.Flags().BoolVar(&offline, "offline", false, "contact nothing")
	s.flags(cmd)
	return cmd
}

// planned is a plan with what is known from the storage and from DNS.
type planned struct {
	Storage     string                       `json:"storage"`
	Bundles     []tlsmgr.Preview             `json:"bundles"`
	Covers      []tlsmgr.Cover               `json:"covers"`
	Delegations map[string]tlsmgr.Delegation `json:"delegations"` // by name
	Budgets     []tlsmgr.Used                `json:"budgets"`
	Problems    []config.Problem             `json:"problems"`
}

// planTimeout bounds the look at the storage, before the plan goes without it.
const planTimeout = 20 * time.Second

// plan shows as much as can be known: without the credentials for orders it
// reads the storage, and without the storage it plans offline.
func plan(cmd *cobra.Command, g *globals) error {
	p := &planned{}
	err := g.certificates(cmd, orders, p.look)
	if f, ok := errors.AsType[*failure](err); ok && f.code == exitConfig {
		fmt.Fprintf(cmd.ErrOrStderr(), "warning: orders would fail here: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
		err = g.certificates(cmd, reads, p.look)
	}
	switch {
	case errors.As(err, new(config.Problems)), errors.Is(err, errInterrupted):
		return err
	case err != nil:
		fmt.Fprintf(cmd.ErrOrStderr(), "warning: planned without the storage: %s (--offline does so at once)\n", strings.ReplaceAll(err.Error(), "\n", "; "))
		return planOffline(cmd, g)
	case g.json:
		return printJSON(cmd.OutOrStdout(), p)
	}
	return p.print(cmd, time.Now())
}

// look reads the storage and asks resolvers.
func (p *planned) look(ctx context.Context, _ *config.Config, m *tlsmgr.Manager) (err error) {
	bounded, cancel := context.WithTimeout(ctx, planTimeout)
	defer cancel()
	p.Storage = m.Status().Storage
	if p.Bundles, err = m.Preview(bounded); err != nil {
		return err
	}
	if p.Budgets, err = m.Budgets(bounded); err != nil {
		return err
	}
	p.Delegations = m.Delegations(ctx)
	p.Covers, p.Problems = m.Planned().Covers, m.Planned().Problems
	return nil
}

func (p *planned) print(cmd *cobra.Command, now time.Time) error {
	for _, problem := range p.Problems {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning:", problem.Error())
	}
	out := cmd.OutOrStdout()
	rows := make([][]string, 0, len(p.Bundles))
	for _, b := range p.Bundles {
		rows = append(rows, []string{b.ID, cmp.Or(b.From, b.Issuer), string(b.KeyType), fmt.Sprint(len(b.Names)), next(&b, now), strings.Join(b.Names, " ")})
	}
	if err := table(out, "CERTIFICATE ISSUER KEY COUNT NEXT NAMES", rows); err != nil {
		return err
	}
	for _, b := range p.Bundles {
		for _, n := range notes(&b, now) {
			fmt.Fprintf(out, "%s: %s\n", b.ID, n)
		}
	}
	fmt.Fprintln(out)
	if err := printCovers(out, p.Covers); err != nil {
		return err
	}
	if err := p.printDelegations(out); err != nil {
		return err
	}
	return p.printBudgets(out)
}

// next is what edge would do about a certificate, in a few words.
func next(b *tlsmgr.Preview, now time.Time) string {
	switch {
	case b.Error != "":
		return "nothing: left as it is"
	case b.Need == "" && b.Renewal.IsZero():
		return "nothing: all its names are left out"
	case b.Need == "" && b.Renewal.After(now):
		return "renew in " + span(b.Renewal.Sub(now))
	case b.Need == "":
		return "nothing: imported"
	case b.OpenOrder != "":
		return "resume the order: " + b.Need
	case b.NotBefore.After(now):
		return "order in " + span(b.NotBefore.Sub(now)) + ": " + b.Need
	}
	return "order: " + b.Need
}

func notes(b *tlsmgr.Preview, now time.Time) []string {
	var out []string
	if len(b.LeftOut) > 0 {
		out = append(out, "left out: "+strings.Join(b.LeftOut, " "))
	}
	if b.Error != "" {
		out = append(out, "left as it is: "+b.Error)
	}
	if b.Need != "" && b.NotBefore.After(now) {
		out = append(out, "not before "+when(b.NotBefore, now)+": "+b.Reason)
	}
	if b.OpenOrder != "" {
		out = append(out, "open order "+b.OpenOrder)
	}
	return out
}

// printDelegations shows the names whose challenge records go elsewhere, or
// cannot be placed. The others are the usual case.
func (p *planned) printDelegations(out io.Writer) error {
	var rows [][]string
	for _, n := range slices.Sorted(maps.Keys(p.Delegations)) {
		d := p.Delegations[n]
		switch {
		case d.Error != "":
			rows = append(rows, []string{n, d.Name, "unknown: " + d.Error, "-", "-"})
		case d.Target != d.Name:
			rows = append(rows, []string{n, d.Name, d.Target, d.Zone, d.Provider})
		}
	}
	if len(rows) == 0 {
		return nil
	}
	fmt.Fprintln(out)
	return table(out, "NAME CHALLENGE DELEGATED ZONE PROVIDER", rows)
}

func (p *planned) printBudgets(out io.Writer) error {
	if len(p.Budgets) == 0 {
		return nil
	}
	fmt.Fprintln(out)
	var rows [][]string
	for _, u := range p.Budgets {
		rows = append(rows, []string{u.Issuer, u.Limit, dash(u.For), fmt.Sprintf("%d of %d", u.Used, u.Count), span(u.Per)})
	}
	return table(out, "ISSUER LIMIT DOMAIN USED PER", rows)
}

func planOffline(cmd *cobra.Command, g *globals) error {
	cfg, err := config.Load(g.config)
	if err != nil {
		return err
	}
	files, err := tlsmgr.FileNames(cfg)
	if err != nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "warning: %v; planned as if it covered nothing\n", err)
	}
	planned := tlsmgr.Explain(cfg, tlsmgr.Known{Files: files})
	if g.json {
		return printJSON(cmd.OutOrStdout(), planned)
	}
	for _, p := range planned.Problems {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning:", p.Error())
	}
	out := cmd.OutOrStdout()
	var rows [][]string
	for _, b := range planned.Bundles {
		rows = append(rows, []string{b.ID, b.Issuer, string(b.KeyType), fmt.Sprint(len(b.Names)), strings.Join(b.Names, " ")})
	}
	if err := table(out, "CERTIFICATE ISSUER KEY COUNT NAMES", rows); err != nil {
		return err
	}
	fmt.Fprintln(out)
	return printCovers(out, planned.Covers)
}

func printCovers(out io.Writer, covers []tlsmgr.Cover) error {
	var rows [][]string
	for _, c := range covers {
		host := cmp.Or(c.Host, "(any)")
		rows = append(rows, []string{host, dash(c.Certificate), dash(c.Name), strings.Join(slices.Compact(c.Routes), " ")})
	}
	return table(out, "HOST CERTIFICATE AS ROUTES", rows)
}

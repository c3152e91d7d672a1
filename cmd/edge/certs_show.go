package main

import (
	"context"
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

func certsShowCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "show ID|HOST",
		Short: "Show all that is known about one certificate",
		Long: "Show all that is known about one certificate, from the storage: what is in it, how long it is\n" +
			"valid, when it is renewed and why then, names in quarantine with the reason, the order\n" +
			"that is under way, and which live replicas serve it.\n\n" +
			"It is named by its id (certs plan) or by a host that it serves.",
		Example: "  edge certs show example.com\n  edge certs show chat.example.com --json",
		Args:    cobra.ExactArgs(1),
		RunE: action(func(cmd *cobra.Command, args []string) error {
			return g.certificates(cmd, reads, func(ctx context.Context, _ *config.Config, m *tlsmgr.Manager) error {
				d, err := find(ctx, m, args[0])
				if err != nil {
					return err
				}
				if g.json {
					return printJSON(cmd.OutOrStdout(), d)
				}
				show(cmd.OutOrStdout(), d, time.Now())
				return nil
			})
		}),
	}
}

// show prints one certificate, a line for each thing that is known.
func show(out io.Writer, d tlsmgr.Detail, now time.Time) {
	line := func(what, text string) {
		if strings.TrimSpace(text) != "" {
			fmt.Fprintf(out, "%-12s  %s\n", what, visible(text))
		}
	}
	line("certificate", fmt.Sprintf("%s (%s)", d.ID, sources()[d.Source]))
	line("error", d.Error)
	line("names", strings.Join(d.Names, " "))
	if d.Serial != "" {
		line("missing", strings.Join(d.Missing, " "))
	}
	line("needs", d.Need)
	line("issuer", issuedBy(d))
	line("key", string(d.KeyType))
	switch {
	case d.Serial == "" && d.Error != "":
		line("valid", "unknown: what is stored cannot be used")
	case d.Serial == "":
		line("valid", "there is no certificate yet")
	default:
		line("serial", d.Serial)
		line("sha256", d.Fingerprint)
		line("valid", d.NotBefore.UTC().Format("2006-01-02 15:04 UTC")+" to "+validity(d, now))
	}
	if !d.Renewal.IsZero() {
		line("renewal", when(d.Renewal, now)+": "+d.RenewalWhy)
	}
	line("replace", d.Replace)
	line("order", d.OrderURL)
	if !d.ObtainedAt.IsZero() {
		line("obtained", when(d.ObtainedAt, now)+by(d.Owner))
	}
	showJournal(line, d.Journal, now)
	for _, r := range d.Replicas {
		line("replica", replica(r, now))
	}
}

func sources() map[string]string {
	return map[string]string{
		"file": "from files", "written": "written under certificates", "inferred": "inferred from routes",
		"stored": "stored; the plan does not want it",
	}
}

func issuedBy(d tlsmgr.Detail) string {
	parts := []string{d.Issuer}
	if d.Imported {
		parts = append(parts, "imported")
	}
	if d.IssuedBy != "" {
		parts = append(parts, "issued by "+d.IssuedBy)
	}
	if d.Profile != "" {
		parts = append(parts, "profile "+d.Profile)
	}
	if d.Directory != "" {
		parts = append(parts, d.Directory)
	}
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), ", ")
}

func validity(d tlsmgr.Detail, now time.Time) string {
	text := when(d.NotAfter, now)
	if d.Left > 0 {
		text += fmt.Sprintf(", %d %% left", int(d.Left*100))
	}
	return text
}

func by(owner string) string {
	if owner == "" {
		return ""
	}
	return ", by " + owner
}

func showJournal(line func(what, text string), j *tlsmgr.Journal, now time.Time) {
	if j == nil {
		return
	}
	if j.Open {
		line("journal", fmt.Sprintf("an order is open since %s%s: %s", when(j.StartedAt, now), by(j.Owner), orWord(j.OrderURL, "the CA may not know it yet")))
	}
	if j.Failures > 0 {
		line("journal", fmt.Sprintf("failed %s: %s", times(j.Failures), j.Error))
	}
	if now.Before(j.Next) {
		line("journal", "next attempt "+when(j.Next, now))
	}
	for _, n := range slices.Sorted(maps.Keys(j.Quarantine)) {
		q := j.Quarantine[n]
		line("quarantine", fmt.Sprintf("%s: %s (refused %s, next attempt %s)", n, q.Reason, times(q.Failures), when(q.Next, now)))
	}
}

func orWord(s, word string) string {
	if s == "" {
		return word
	}
	return s
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

func replica(r tlsmgr.Loaded, now time.Time) string {
	state := "has not loaded it yet"
	if r.Loaded {
		state = "serves it"
	}
	if r.Silent {
		state += fmt.Sprintf(", silent for %s: it has probably ended", span(now.Sub(r.Beat)))
	}
	return fmt.Sprintf("%s (%s): %s", r.Owner, r.Role, state)
}

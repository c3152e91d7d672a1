package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"edge/config"
	"edge/tlsmgr"
)

func certsObtainCommand(g *globals) *cobra.Command {
	var s staging
	cmd := &cobra.Command{
		Use:   "obtain [ID…]",
		Short: "Order the certificates that are missing or due, now",
		Long: "Order the certificates that are missing or due, now: all of the plan, or those that are named\n" +
			"(certs plan lists them). What needs no order is left alone; certs renew orders it anyway.\n" +
			"Exit 5 means that some certificates failed; the others are stored and served.\n\n" +
			"With --staging everything is ordered from the staging directories of the issuers instead: what\n" +
			"issuers.NAME.acme.staging says, or the one that edge knows of the CA. The certificates\n" +
			"go into a storage that is thrown away, and count for no limit of the real CA. Challenge\n" +
			"records are written for a moment, as in a real order.\n\n" +
			"Ctrl-C removes the challenge records; what was begun is resumed by the next attempt.",
		Example: "  edge certs obtain\n  edge certs obtain example.com -v\n  edge certs obtain --staging",
		RunE: action(func(cmd *cobra.Command, args []string) error {
			if s.on {
				return s.run(g, cmd, args)
			}
			if s.issuer != "" {
				return usage("--issuer needs --staging")
			}
			return g.certificates(cmd, orders, func(ctx context.Context, _ *config.Config, m *tlsmgr.Manager) error {
				return obtain(ctx, g, cmd, m, args, false)
			})
		}),
	}
	s.flags(cmd)
	return cmd
}

func certsRenewCommand(g *globals) *cobra.Command {
	all := false
	cmd := &cobra.Command{
		Use:   "renew ID… | --all",
		Short: "Order certificates although nothing needs it",
		Long: "Order certificates again although nothing needs it, and names in quarantine with them. Edge renews\n" +
			"by itself in time; this is for a key that may have leaked, or after a change at the CA.\n" +
			"Limits of the CA still count. Exit 5 means that some certificates failed.",
		Example: "  edge certs renew example.com\n  edge certs renew --all",
		RunE: action(func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return usage("name the certificates, or say --all")
			}
			return g.certificates(cmd, orders, func(ctx context.Context, _ *config.Config, m *tlsmgr.Manager) error {
				return obtain(ctx, g, cmd, m, args, true)
			})
		}),
	}
	cmd.Flags().BoolVar(&all, "all", false, "all certificates of the plan")
	return cmd
}

// outcome is what became of a certificate.
type outcome struct {
	ID       string    `json:"id"`
	Result   string    `json:"result"` // obtained, unchanged, partly, failed
	Issuer   string    `json:"issuer"`
	IssuedBy string    `json:"issued_by,omitempty"`
	Serial   string    `json:"serial,omitempty"`
	NotAfter time.Time `json:"not_after,omitzero"`
	Names    []string  `json:"names"`
	Missing  []string  `json:"missing,omitempty"`
	Error    string    `json:"error,omitempty"`
}

// obtain orders certificates, all when there are no ids, and prints what became
// of each.
func obtain(ctx context.Context, g *globals, cmd *cobra.Command, m *tlsmgr.Manager, ids []string, force bool) error {
	before, err := m.Details(ctx)
	if err != nil {
		return err
	}
	all, err := plannedIDs(m, ids)
	if err != nil {
		return err
	}
	if len(ids) == 0 {
		ids = all
	}
	ids = slices.Compact(slices.Sorted(slices.Values(ids)))
	failed, err := perCertificate(m.Obtain(ctx, ids, force))
	if err != nil {
		return err
	}
	after, err := m.Details(context.WithoutCancel(ctx))
	if err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	outcomes := make([]outcome, 0, len(ids))
	bad := 0
	for _, id := range ids {
		was, _ := tlsmgr.Find(before, id)
		is, _ := tlsmgr.Find(after, id)
		o := compare(was, is, failed[id])
		if o.Error != "" {
			bad++
		}
		outcomes = append(outcomes, o)
	}
	if g.json {
		err = printJSON(cmd.OutOrStdout(), outcomes)
	} else {
		err = printOutcomes(cmd.OutOrStdout(), outcomes, time.Now())
	}
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case bad > 0:
		return &failure{exitPartly, fmt.Errorf("%d of %s failed (see above)", bad, count(len(ids), "certificate"))}
	}
	return nil
}

// perCertificate takes the errors of single certificates out of err.
func perCertificate(err error) (failed map[string]string, rest error) {
	failed = map[string]string{}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return failed, err
	}
	for _, err := range joined.Unwrap() {
		one, ok := errors.AsType[*tlsmgr.CertificateError](err)
		if !ok {
			return failed, err
		}
		failed[one.ID] = one.Err.Error()
		if errors.Is(err, errInterrupted) {
			failed[one.ID] = errInterrupted.Error() // not what it ended in the middle of
		}
	}
	return failed, nil
}

func compare(was, is tlsmgr.Detail, problem string) outcome {
	o := outcome{
		ID: is.ID, Result: "unchanged", Issuer: is.Issuer, IssuedBy: is.IssuedBy, Serial: is.Serial,
		NotAfter: is.NotAfter, Names: is.Names, Missing: is.Missing, Error: problem,
	}
	if o.Error == "" && is.Error != "" {
		o.Error = is.Error
	}
	if o.Error == "" && is.Need != "" {
		o.Error = "still to be ordered: " + is.Need
	}
	fresh := is.Serial != was.Serial
	switch {
	case o.Error != "" && fresh:
		o.Result = "partly"
	case o.Error != "":
		o.Result = "failed"
	case fresh:
		o.Result = "obtained"
	}
	return o
}

func printOutcomes(out io.Writer, outcomes []outcome, now time.Time) error {
	var rows [][]string
	for _, o := range outcomes {
		expires := "-"
		if !o.NotAfter.IsZero() {
			expires = span(o.NotAfter.Sub(now))
		}
		rows = append(rows, []string{o.ID, o.Result, expires, dash(o.Issuer), dash(o.IssuedBy), strings.Join(o.Names, " ")})
	}
	if err := table(out, "CERTIFICATE RESULT EXPIRES ISSUER BY NAMES", rows); err != nil {
		return err
	}
	for _, o := range outcomes {
		if o.Error != "" {
			fmt.Fprintf(out, "%s: %s\n", o.ID, o.Error)
		}
	}
	return nil
}

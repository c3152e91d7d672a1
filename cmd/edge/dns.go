package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"edge/config"
	"edge/tlsmgr"
	"edge/tlsmgr/dns"
)

func dnsCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use: "dns", Short: "Check that names can be proven, and show the records to publish",
		Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(dnsCheckCommand(g), dnsRecordsCommand(g))
	return cmd
}

func dnsCheckCommand(g *globals) *cobra.Command {
	write := false
	cmd := &cobra.Command{
		Use:   "check NAME",
		Short: "Explain step by step whether a name can be proven to its CA",
		Long: "Explain step by step whether a name can be proven to the CA that the plan has for it: resolvers,\n" +
			"CNAMEs of the challenge name, zone and delegation, provider, every name server and what it\n" +
			"answers, and whether CAA records let the CA and the account issue. Exit 1 when a step failed.\n\n" +
			"Nothing is written, unless --write is given: then a probe record is added as for an order, waited\n" +
			"for on every name server, and deleted. No order is placed and no account registered.",
		Example: "  edge dns check chat.example.com\n  edge dns check '*.example.com' --write",
		Args:    cobra.ExactArgs(1),
		RunE: action(func(cmd *cobra.Command, args []string) error {
			return g.certificates(cmd, orders, func(ctx context.Context, _ *config.Config, m *tlsmgr.Manager) error {
				report, issuer, err := m.CheckDNS(ctx, args[0], write)
				if err != nil {
					return err
				}
				if g.json {
					err = printJSON(cmd.OutOrStdout(), struct {
						Issuer string `json:"issuer"`
						OK     bool   `json:"ok"`
						*dns.Report
					}{issuer, report.OK(), report})
				} else {
					_, err = fmt.Fprintf(cmd.OutOrStdout(), "issuer %s\n%s", issuer, report)
				}
				if err == nil && !report.OK() {
					err = &failure{exitFailure, fmt.Errorf("%s cannot be proven (see above)", args[0])}
				}
				return err
			})
		}),
	}
	cmd.Flags().BoolVar(&write, "write", false, "add a probe record and delete it again")
	return cmd
}

func dnsRecordsCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "records",
		Short: "Show the records to publish: dns-persist-01 and CAA",
		Long: "Show the records to publish by hand, in the form of a zone file:\n\n" +
			"  TXT  for dns-persist-01, without which names of such issuers are not ordered; each line\n" +
			"       says whether every name server has it already\n" +
			"  CAA  recommended for every issuer of the plan: only this account may issue for the domain\n" +
			"       (RFC 8659, RFC 8657). Publish those of all issuers that you use, fallbacks\n" +
			"       included: a CAA record forbids every CA that none names\n\n" +
			"The records name the ACME account. An issuer that has none yet gets one now, and it is said.",
		Example: "  edge dns records",
		Args:    cobra.NoArgs,
		RunE: action(func(cmd *cobra.Command, _ []string) error {
			return g.certificates(cmd, orders, func(ctx context.Context, _ *config.Config, m *tlsmgr.Manager) error {
				all, err := m.Publications(ctx)
				if g.json {
					if all == nil {
						all = []tlsmgr.Publication{}
					}
					if printErr := printJSON(cmd.OutOrStdout(), all); printErr != nil {
						return printErr
					}
					return err
				}
				if len(all) == 0 && err == nil {
					fmt.Fprintln(cmd.ErrOrStderr(), "nothing to publish: edge's own CA certifies all names of the plan")
				}
				for _, p := range all {
					if p.Registered {
						fmt.Fprintf(cmd.ErrOrStderr(), "registered an account with issuer %s: %s\n", p.Issuer, p.Account)
					}
					printPublication(cmd.OutOrStdout(), &p)
				}
				return err
			})
		}),
	}
}

func printPublication(out io.Writer, p *tlsmgr.Publication) {
	fmt.Fprintf(out, "; issuer %s, %s, account %s\n", p.Issuer, p.Challenge, p.Account)
	if len(p.Identities) == 0 {
		fmt.Fprintln(out, "; the CA does not say by which name CAA and dns-persist-01 records call it: ask it")
	}
	for _, r := range p.Records {
		state := "published"
		switch {
		case !r.Published:
			state = "not published: " + r.Problem
		case !r.Until.IsZero():
			state = "published, until " + r.Until.UTC().Format("2006-01-02")
		}
		fmt.Fprintf(out, "; proves %s; %s\n%s. 3600 IN TXT %s\n", strings.Join(r.Proves, " and "), state, r.Name, quoted(r.Value))
	}
	for _, r := range p.CAA {
		fmt.Fprintf(out, "%s. 3600 IN CAA 0 issue %q\n", r.Name, r.Value)
	}
}

// quoted is a TXT value in a zone file, in strings of at most 255 bytes
// (RFC 1035 section 3.3).
func quoted(value string) string {
	const most = 255
	var parts []string
	for len(value) > most {
		parts = append(parts, fmt.Sprintf("%q", value[:most]))
		value = value[most:]
	}
	return strings.Join(append(parts, fmt.Sprintf("%q", value)), " ")
}

package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"edge/tlsmgr"
)

func certsCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use: "certs", Short: "Look at certificates, obtain, renew, revoke and move them",
		Long: "Look at certificates, obtain, renew, revoke and move them.\n\n" +
			"All but ls work on the storage like one more replica: they need the configuration and\n" +
			"no running edge, and leases keep them apart from replicas that are at work. What they\n" +
			"change, running replicas serve within seconds.",
		Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }, // without it, any word is fine
	}
	cmd.AddCommand(
		certsListCommand(g), certsShowCommand(g), certsPlanCommand(g), certsCheckCommand(g),
		certsObtainCommand(g), certsRenewCommand(g), certsRevokeCommand(g),
		certsExportCommand(g), certsImportCommand(g), certsRootCommand(g), certsAccountCommand(g),
	)
	return cmd
}

func certsListCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List the certificates of a running edge",
		Long:  "List the certificates that a running edge serves or works on, names that it leaves out, and\nthe other replicas that share its storage. certs show tells more about one of them.",
		Args:  cobra.NoArgs,
		RunE: action(func(cmd *cobra.Command, _ []string) error {
			s, err := g.status(cmd.Context())
			if err != nil {
				return err
			}
			if g.json {
				return printJSON(cmd.OutOrStdout(), s.Certificates)
			}
			if err := printCertificates(cmd, s.Certificates.Certificates, time.Now()); err != nil {
				return err
			}
			return printReplicas(cmd, s.Certificates.Replicas, time.Now())
		}),
	}
}

func printCertificates(cmd *cobra.Command, certs []tlsmgr.CertificateStatus, now time.Time) error {
	var rows [][]string
	for _, c := range certs {
		expires := "-"
		if !c.NotAfter.IsZero() {
			expires = span(c.NotAfter.Sub(now))
		}
		rows = append(rows, []string{c.ID, string(c.State), expires, c.Issuer, strings.Join(c.Names, " ")})
	}
	if err := table(cmd.OutOrStdout(), "CERTIFICATE STATE EXPIRES ISSUER NAMES", rows); err != nil {
		return err
	}
	for _, c := range certs {
		if c.Replaces != "" {
			fmt.Fprintf(cmd.OutOrStdout(), "%s: the CA wants it replaced now: %s\n", c.ID, c.Replaces)
		}
		if len(c.LeftOut) > 0 {
			fmt.Fprintf(cmd.OutOrStdout(), "%s: left out: %s\n", c.ID, strings.Join(c.LeftOut, " "))
		}
		if c.Error == "" {
			continue
		}
		next := ""
		if !c.NextAttempt.IsZero() {
			next = fmt.Sprintf("; next attempt in %s", span(c.NextAttempt.Sub(now)))
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s: %s%s\n", c.ID, c.Error, next)
	}
	return nil
}

func printReplicas(cmd *cobra.Command, replicas []tlsmgr.ReplicaStatus, now time.Time) error {
	if len(replicas) == 0 {
		return nil
	}
	fmt.Fprintln(cmd.OutOrStdout())
	var rows [][]string
	for _, r := range replicas {
		rows = append(rows, []string{r.Owner, r.Role, span(now.Sub(r.Started)), dash(r.Version)})
	}
	return table(cmd.OutOrStdout(), "REPLICA ROLE UP VERSION", rows)
}

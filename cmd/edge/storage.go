package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"edge/config"
	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

func storageCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use: "storage", Short: "Look at the storage that replicas share, verify, copy and encrypt it",
		Long: "Look at the storage that replicas share, verify, copy and encrypt it. docs/storage.md says what\n" +
			"lies where. These commands need no running edge and may run beside one.",
		Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(storageListCommand(g), storageVerifyCommand(g), storageLocksCommand(g), storageCopyCommand(g), storageRotateCommand(g))
	return cmd
}

// object is a line of storage ls.
type object struct {
	Key      string    `json:"key"`
	Size     int64     `json:"size"`
	Modified time.Time `json:"modified"`
}

func storageListCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "ls [PREFIX]",
		Short:   "List objects, with size and age",
		Long:    "List the objects below PREFIX, a directory as in edge/v1/orders, or all of them, with size and age.\nIt is one listing: nothing is opened.",
		Example: "  edge storage ls\n  edge storage ls edge/v1/certificates --json",
		Args:    cobra.MaximumNArgs(1),
		RunE: action(func(cmd *cobra.Command, args []string) error {
			prefix := ""
			if len(args) == 1 {
				prefix = strings.Trim(args[0], "/")
			}
			return g.inVault(cmd, func(ctx context.Context, _ *config.Config, v *vault.Vault) error {
				listed, err := v.Store().ListVersions(ctx, prefix)
				if err != nil {
					return err
				}
				objects := make([]object, 0, len(listed))
				var rows [][]string
				for _, o := range listed {
					objects = append(objects, object{o.Key, o.Size, o.Modified})
					rows = append(rows, []string{o.Key, fmt.Sprint(o.Size), span(time.Since(o.Modified)) + " ago"})
				}
				if g.json {
					return printJSON(cmd.OutOrStdout(), objects)
				}
				return table(cmd.OutOrStdout(), "OBJECT BYTES CHANGED", rows)
			})
		}),
	}
}

func storageVerifyCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "verify",
		Short: "Read every object and say which cannot be used",
		Long: "Read every object and say which cannot be used: damaged, written by a newer edge, sealed with a key\n" +
			"that is not configured, chain and key that do not belong together, or none of edge's. Exit 1\n" +
			"when there is one. Nothing is changed. It also tells which keys seal how many objects, so that\n" +
			"one can be retired.",
		Args: cobra.NoArgs,
		RunE: action(func(cmd *cobra.Command, _ []string) error {
			return g.inVault(cmd, func(ctx context.Context, _ *config.Config, v *vault.Vault) error {
				r, err := v.Verify(ctx, g.progress(cmd).countOf("verify"))
				if err != nil {
					return err
				}
				if g.json {
					err = printJSON(cmd.OutOrStdout(), r)
				} else {
					err = printVerified(cmd, r)
				}
				if err == nil && len(r.Findings) > 0 {
					err = &failure{exitFailure, fmt.Errorf("%s in %s (see above)", count(len(r.Findings), "finding"), v.Store().URL())}
				}
				return err
			})
		}),
	}
}

func printVerified(cmd *cobra.Command, r vault.Report) error {
	out := cmd.OutOrStdout()
	var rows [][]string
	for _, kind := range slices.Sorted(maps.Keys(r.Kinds)) {
		c := r.Kinds[kind]
		rows = append(rows, []string{string(kind), fmt.Sprint(c.Objects), fmt.Sprint(c.Sealed), fmt.Sprint(c.Bytes)})
	}
	if err := table(out, "KIND OBJECTS SEALED BYTES", rows); err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(r.Keys)) {
		fmt.Fprintf(out, "key %s seals %s\n", visible(id), count(r.Keys[id], "object"))
	}
	if r.Stale > 0 {
		fmt.Fprintf(out, "%s not sealed with the first key (edge storage rotate)\n", countAre(r.Stale, "object"))
	}
	for _, f := range r.Findings {
		fmt.Fprintf(out, "%s: %s: %s\n", f.Problem, visible(f.Key), visible(f.Detail))
	}
	return nil
}

func countAre(n int, thing string) string {
	if n == 1 {
		return count(n, thing) + " is"
	}
	return count(n, thing) + " are"
}

// lock is a line of storage locks.
type lock struct {
	Name  string        `json:"name"`
	Held  bool          `json:"held"`
	Owner string        `json:"owner"`
	Since time.Time     `json:"heartbeat"` // or when it was released
	TTL   time.Duration `json:"ttl_ns"`
	Fence int64         `json:"fence"`
}

func storageLocksCommand(g *globals) *cobra.Command {
	all := false
	cmd := &cobra.Command{
		Use:   "locks",
		Short: "Show which leases are held, by whom",
		Long: "Show which leases are held, by whom, and when the holder last said so. A holder that is silent for\n" +
			"longer than its TTL has died; the next one to come takes the lease over, and nothing need be\n" +
			"done. With --all also those that were released.",
		Args: cobra.NoArgs,
		RunE: action(func(cmd *cobra.Command, _ []string) error {
			return g.inVault(cmd, func(ctx context.Context, _ *config.Config, v *vault.Vault) error {
				leases, err := v.Locks(ctx)
				if err != nil {
					return err
				}
				locks := []lock{}
				var rows [][]string
				for _, l := range leases {
					if !l.Held && !all {
						continue
					}
					locks = append(locks, lock{l.Name, l.Held, l.Owner, l.At, l.TTL, l.Fence})
					rows = append(rows, []string{l.Name, stateOf(l, time.Now()), dash(l.Owner), ago(l.At), span(l.TTL)})
				}
				if g.json {
					return printJSON(cmd.OutOrStdout(), locks)
				}
				return table(cmd.OutOrStdout(), "LEASE STATE OWNER HEARTBEAT TTL", rows)
			})
		}),
	}
	cmd.Flags().BoolVar(&all, "all", false, "also leases that were released")
	return cmd
}

// ago is how long since is past; a record that cannot be read tells no time.
func ago(since time.Time) string {
	if since.IsZero() {
		return "-"
	}
	return span(time.Since(since)) + " ago"
}

// stateOf is by the clocks of two machines, and so for people only.
func stateOf(l store.LeaseInfo, now time.Time) string {
	switch {
	case !l.Held:
		return "free"
	case l.At.IsZero():
		return "damaged" // whoever comes takes it over after a TTL
	case l.TTL > 0 && now.Sub(l.At) > l.TTL:
		return "lapsed"
	}
	return "held"
}

func storageCopyCommand(g *globals) *cobra.Command {
	force := false
	cmd := &cobra.Command{
		Use:   "copy TO_URL",
		Short: "Copy everything to another storage",
		Long: "Copy certificates, accounts, orders and all else to another storage: a move to another cloud, a backup,\n" +
			"a second region. What is sealed is opened and sealed again with the first configured key.\n" +
			"Leases and heartbeats stay. What differs in the target is kept and told, and exit is 1;\n" +
			"with --force it is overwritten, but never what a newer edge wrote or no key opens.\n\n" +
			"To move: copy, change storage in the configuration, restart the replicas, copy once more.",
		Example: "  edge storage copy \"s3://certs/prod?region=eu-west-1\"\n  edge storage copy file:///mnt/backup/edge --force",
		Args:    cobra.ExactArgs(1),
		RunE: action(func(cmd *cobra.Command, args []string) error {
			return g.inVault(cmd, func(ctx context.Context, cfg *config.Config, v *vault.Vault) error {
				to, err := g.openVault(ctx, cmd, cfg, args[0])
				if err != nil {
					return err
				}
				defer func() { _ = to.Store().Close() }()
				if to.Store().URL() == v.Store().URL() {
					return errors.New("source and target are the same storage")
				}
				if err := to.Store().Probe(ctx); err != nil {
					return err
				}
				move := v.Copy
				if force {
					move = v.CopyOver
				}
				n, err := move(ctx, to, g.progress(cmd).countOf("copy"))
				return told(g, cmd, err, n, "copied to "+to.Store().URL(), "copied")
			})
		}),
	}
	cmd.Flags().BoolVar(&force, "force", false, "overwrite what differs in the target")
	return cmd
}

// told prints how many objects were done, also when there was an error with
// others.
func told(g *globals, cmd *cobra.Command, err error, n int, done, key string) error {
	var printErr error
	if g.json {
		printErr = printJSON(cmd.OutOrStdout(), map[string]int{key: n})
	} else if err == nil || n > 0 {
		fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", count(n, "object"), done)
	}
	return errors.Join(err, printErr)
}

func storageRotateCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "rotate",
		Short: "Seal everything with the first key of storage.encrypt.keys",
		Long: "Seal what is plain, or sealed with another key, with the first key of storage.encrypt.keys. To change\n" +
			"the key, which replicas read when they start:\n\n" +
			"  1. add the new key as the second on every replica, and restart them: now all can read it\n" +
			"  2. make it the first on every replica, and restart them: now all write with it\n" +
			"  3. edge storage rotate\n" +
			"  4. edge storage verify says that no object needs the old key: take it off the list\n\n" +
			"It may run while edge works, waits for orders under way, and can be repeated.",
		Args: cobra.NoArgs,
		RunE: action(func(cmd *cobra.Command, _ []string) error {
			return g.inVault(cmd, func(ctx context.Context, _ *config.Config, v *vault.Vault) error {
				n, err := v.Rotate(ctx, g.progress(cmd).countOf("rotate"))
				return told(g, cmd, err, n, "sealed with the first key", "sealed")
			})
		}),
	}
}

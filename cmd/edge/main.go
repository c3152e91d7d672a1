// Command edge is a reverse proxy between model servers and the internet. It
// obtains its own certificates, routes by host and path, and streams tokens.
//
//	edge validate            check routes.yaml and say all that is wrong
//	edge certs plan          which certificates the routes need
//	edge run                 serve
//	edge reload              read routes.yaml again, all or nothing
//
// A file per command; serve.go wires config, tlsmgr, proxy and admin together.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"edge/admin"
	"edge/config"
)

// Exit codes. They are part of the command line's contract.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitConfig      = 3 // configuration invalid
	exitUnreachable = 4 // control socket unreachable or edge not ready
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

// run executes one command and returns its exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := command()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintln(stderr, message(err))
	return exitCode(err)
}

// failure is an error of a command that was understood: everything else that
// cobra returns is a mistake in how edge was called.
type failure struct {
	code int
	err  error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// invalid marks err as one of the configuration.
func invalid(err error) error { return &failure{exitConfig, err} }

// message is err as the terminal shows it: problems of a file stand alone, so
// that editors find file:line:col at the start of the line.
func message(err error) string {
	if _, ok := errors.AsType[config.Problems](err); ok {
		return err.Error()
	}
	text := "edge: " + err.Error()
	if exitCode(err) == exitUsage && !strings.Contains(text, "--help") {
		text += " (see edge --help)"
	}
	return text
}

func exitCode(err error) int {
	if f, ok := errors.AsType[*failure](err); ok {
		return f.code
	}
	return exitUsage
}

// action adapts f to cobra and gives its errors their exit code.
func action(f func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		err := f(cmd, args)
		switch {
		case err == nil:
			return nil
		case errors.As(err, new(*failure)):
			return err
		case errors.As(err, new(config.Problems)):
			return invalid(err)
		case errors.Is(err, admin.ErrUnreachable):
			return &failure{exitUnreachable, err}
		}
		return &failure{exitFailure, err}
	}
}

// globals are the flags that every command has.
type globals struct {
	config string
	socket string
	json   bool
}

func command() *cobra.Command {
	g := &globals{}
	root := &cobra.Command{
		Use:           "edge",
		Short:         "Reverse proxy between model servers and the internet",
		Long:          "edge obtains certificates by ACME DNS-01, shares them in a bucket, terminates TLS,\nroutes by host and path to pools of model servers, and streams their tokens.",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	flags := root.PersistentFlags()
	flags.StringVarP(&g.config, "config", "c", env("EDGE_CONFIG", "routes.yaml"), "configuration `file` ($EDGE_CONFIG)")
	flags.StringVar(&g.socket, "socket", os.Getenv("EDGE_SOCKET"), "control socket `path` ($EDGE_SOCKET; default: what the configuration says)")
	flags.BoolVar(&g.json, "json", false, "print JSON")
	root.AddCommand(runCommand(g), validateCommand(g), reloadCommand(g), statusCommand(g), certsCommand(g), versionCommand(g))
	root.CompletionOptions.HiddenDefaultCmd = true
	return root
}

func env(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}

// client returns a client for the running edge. Without --socket the
// configuration says where its control socket is; when that cannot be read,
// which is when a reload is wanted most, the default path is tried.
func (g *globals) client() *admin.Client {
	if g.socket != "" {
		return admin.NewClient(g.socket)
	}
	if cfg, err := config.Load(g.config); err == nil {
		return admin.NewClient(cfg.Control.Socket)
	}
	return admin.NewClient(config.DefaultSocket)
}

// Command edge is a reverse proxy between model servers and the internet. It
// obtains its own certificates, routes by host and path, and streams tokens.
//
//	edge validate            check routes.yaml and say all that is wrong
//	edge certs plan          which certificates the routes need
//	edge run                 serve
//	edge reload              read routes.yaml again, all or nothing
//	edge certs check         for cron: is a certificate about to expire?
//
// A file per command (group); docs/cli.md is their manual. serve.go wires config, tlsmgr, proxy and admin together.
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
	exitPartly      = 5 // some certificates failed
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
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	if !errors.Is(err, errSilent) {
		fmt.Fprintln(stderr, message(cmd, err))
	}
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

// errSilent is a failure that the command has told by itself.
var errSilent = errors.New("see the output")

// usage is a mistake in how edge was called that cobra does not see.
func usage(text string) error { return &failure{exitUsage, errors.New(text)} }

// invalid marks err as one of the configuration.
func invalid(err error) error { return &failure{exitConfig, err} }

// message is err as the terminal shows it: problems of a file stand alone, so
// that editors find file:line:col at the start of the line. A mistake in a call
// points to the help of the command, in one line.
func message(cmd *cobra.Command, err error) string {
	if _, ok := errors.AsType[config.Problems](err); ok {
		return err.Error()
	}
	text := "edge: " + err.Error()
	if exitCode(err) == exitUsage {
		text = strings.Replace(text, "\n\nDid you mean this?\n\t", ", did you mean ", 1)
		text = strings.ReplaceAll(strings.TrimSpace(text), "\n\t", " or ")
		if strings.HasPrefix(err.Error(), "accepts ") {
			text += " (" + strings.TrimSuffix(cmd.UseLine(), " [flags]") + ")"
		}
		text = withHint(text, "see "+cmd.CommandPath()+" --help")
	}
	return text
}

// withHint adds a hint to text, in the parentheses that it may end with.
func withHint(text, hint string) string {
	if text, ok := strings.CutSuffix(text, ")"); ok {
		return text + "; " + hint + ")"
	}
	return text + " (" + hint + ")"
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
	config  string
	socket  string
	json    bool
	verbose bool
}

func command() *cobra.Command {
	g := &globals{}
	root := &cobra.Command{
		Use:   "edge",
		Short: "Reverse proxy between model servers and the internet",
		Long: "edge obtains certificates by ACME or signs them itself, shares them among replicas in a bucket,\n" +
			"terminates TLS, routes by host and path to pools of model servers, and streams their tokens.\n\n" +
			"Begin with a routes.yaml: edge validate, edge certs plan --offline, edge run.",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	flags := root.PersistentFlags()
	flags.StringVarP(&g.config, "config", "c", env("EDGE_CONFIG", "routes.yaml"), "configuration `file` ($EDGE_CONFIG)")
	flags.StringVar(&g.socket, "socket", os.Getenv("EDGE_SOCKET"), "control socket `path` ($EDGE_SOCKET; default: what the configuration says)")
	flags.BoolVar(&g.json, "json", false, "print JSON")
	flags.BoolVarP(&g.verbose, "verbose", "v", false, "tell progress also when standard error is no terminal")
	root.AddCommand(runCommand(g), validateCommand(g), reloadCommand(g), statusCommand(g), certsCommand(g),
		storageCommand(g), dnsCommand(g), versionCommand(g))
	root.CompletionOptions.HiddenDefaultCmd = true
	// The default template prints the name first. One of our own would link
	// text/template, and with it every exported method: half as much binary again.
	root.Version = strings.TrimPrefix(build().String(), "edge ")
	return root
}

func env(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}

// ask calls f with a client for the running edge. Without --socket the
// configuration says where its control socket is; when that cannot be read, the
// default is tried, and an error tells both.
func (g *globals) ask(f func(*admin.Client) error) error {
	socket, unread := g.socket, error(nil)
	if socket == "" {
		socket, unread = config.SocketOf(g.config)
	}
	err := f(admin.NewClient(socket))
	if unread != nil && errors.Is(err, admin.ErrUnreachable) {
		return fmt.Errorf("%w; it is the default, because the configuration names none:\n%v", err, unread) //nolint:errorlint // an unreachable edge is the problem
	}
	return err
}

// status asks the running edge for its status.
func (g *globals) status(ctx context.Context) (s admin.Status, err error) {
	err = g.ask(func(c *admin.Client) error {
		s, err = c.Status(ctx)
		return err
	})
	return s, err
}

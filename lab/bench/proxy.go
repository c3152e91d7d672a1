package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// known are the names that peers/run.sh can start.
var known = []string{"edge", "edge-logged", "nginx", "nginx-bulk", "haproxy", "h2o", "caddy", "traefik", "traefik-fast", "std"}

// direct is the model server's own TLS port, with no proxy at all.
const direct = "direct"

// proxy is one that is compared.
type proxy struct {
	name    string
	command string // for /bin/sh, with placeholders; empty for direct
	addr    string // where it takes TLS
	child   *child
}

// parseProxies reads NAME, NAME=KNOWN:BINARY and NAME=COMMAND. A name that was
// given before gets a prime, edge and edge': the pair is the A/A control.
func parseProxies(args []string) ([]*proxy, error) {
	if len(args) == 0 {
		return nil, fmt.Errorf("name at least one proxy of %s, or NAME=COMMAND", strings.Join(known, ", "))
	}
	var all []*proxy
	for _, arg := range args {
		name, what, given := strings.Cut(arg, "=")
		p := &proxy{name: name, command: what}
		program, binary, colon := strings.Cut(what, ":")
		switch {
		case name == "":
			return nil, fmt.Errorf("%q has no name", arg)
		case given && what == "":
			return nil, fmt.Errorf("%q has no command", arg)
		case !given && name == direct:
		case !given && !slices.Contains(known, strings.TrimRight(name, "'")):
			return nil, fmt.Errorf("no proxy %q (known: %s); or write NAME=COMMAND", name, strings.Join(known, ", "))
		case !given:
			p.command = "{lab}/peers/run.sh " + strings.TrimRight(name, "'")
		case colon && slices.Contains(known, program):
			absolute, err := filepath.Abs(binary)
			if err != nil {
				return nil, err
			}
			p.command = "{lab}/peers/run.sh " + program + " '" + absolute + "'"
		}
		for slices.ContainsFunc(all, func(q *proxy) bool { return q.name == p.name }) {
			p.name += "'"
		}
		all = append(all, p)
	}
	return all, nil
}

// pairs returns the names that are controls of each other: edge and edge'.
func pairs(names []string) (pairs [][2]string) {
	for _, name := range names {
		if slices.Contains(names, name+"'") {
			pairs = append(pairs, [2]string{name, name + "'"})
		}
	}
	return pairs
}

// places are the addresses and folders of a proxy.
type places struct {
	listen, backend, h2c string
	certs, tmp, lab      string
	workers              int
}

var errPort = errors.New("address without a port")

// fill replaces the placeholders of a command, and returns the same values as
// environment variables, in upper case.
func (p places) fill(command string) (filled string, env []string, err error) {
	i := strings.LastIndexByte(p.listen, ':')
	if i < 0 {
		return "", nil, fmt.Errorf("%q: %w", p.listen, errPort)
	}
	values := []struct{ name, value string }{
		{"listen", p.listen},
		{"port", p.listen[i+1:]},
		{"backend", p.backend},
		{"h2c", p.h2c},
		{"certs", p.certs},
		{"tmp", p.tmp},
		{"workers", strconv.Itoa(p.workers)},
		{"lab", p.lab},
	}
	var replace []string
	for _, v := range values {
		env = append(env, strings.ToUpper(v.name)+"="+v.value)
		replace = append(replace, "{"+v.name+"}", v.value)
	}
	return strings.NewReplacer(replace...).Replace(command), env, nil
}

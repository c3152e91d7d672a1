package vault

import "log/slog"

// Objects that hold private keys are shown by what they are for, so that one
// that slips into a log or an error tells nothing.

// String names the certificate without its key.
func (c Certificate) String() string { return "certificate " + c.ID }

// String names the account without its key.
func (a Account) String() string { return "account " + AccountID(a.Directory, a.Email) }

// String names the order without its key.
func (o Order) String() string { return "order " + o.ID }

// String names the attempt without its key.
func (a Attempt) String() string { return "attempt at " + a.Issuer }

// String names the authority without its keys.
func (a Authority) String() string { return "authority " + a.Issuer }

// GoString is String; %#v must not show more than %v.
func (c Certificate) GoString() string { return c.String() }

// GoString is String; %#v must not show more than %v.
func (a Account) GoString() string { return a.String() }

// GoString is String; %#v must not show more than %v.
func (o Order) GoString() string { return o.String() }

// GoString is String; %#v must not show more than %v.
func (a Attempt) GoString() string { return a.String() }

// GoString is String; %#v must not show more than %v.
func (a Authority) GoString() string { return a.String() }

// LogValue is String.
func (c Certificate) LogValue() slog.Value { return slog.StringValue(c.String()) }

// LogValue is String.
func (a Account) LogValue() slog.Value { return slog.StringValue(a.String()) }

// LogValue is String.
func (o Order) LogValue() slog.Value { return slog.StringValue(o.String()) }

// LogValue is String.
func (a Attempt) LogValue() slog.Value { return slog.StringValue(a.String()) }

// LogValue is String.
func (a Authority) LogValue() slog.Value { return slog.StringValue(a.String()) }

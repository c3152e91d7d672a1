package main

import (
	"context"
	"io"
	stdlog "log" //nolint:depguard // only to catch what dependencies print with it
	"log/slog"
	"strings"
	"sync/atomic"

	"edge/config"
)

// logger is the program's log and the switch of its format.
type logger struct {
	*slog.Logger

	format *formatHandler
}

func newLog(w io.Writer, c config.Log) *logger {
	h := &formatHandler{text: slog.NewTextHandler(w, nil), asJSON: slog.NewJSONHandler(w, nil), json: new(atomic.Bool)}
	h.json.Store(c.Format == "json")
	return &logger{slog.New(h), h}
}

// libraries takes what dependencies print with the standard logger into the log,
// without what they quote: net/http shows up to 16 KiB of what a backend sent
// beyond its reply, which may be somebody's tokens.
func (l *logger) libraries() {
	stdlog.SetFlags(0)
	stdlog.SetOutput(quoteless{l.Logger})
}

// quoteless writes lines to a log, each up to its first quotation mark.
type quoteless struct{ log *slog.Logger }

func (q quoteless) Write(p []byte) (int, error) {
	line, _, _ := strings.Cut(strings.TrimSpace(string(p)), `"`)
	q.log.LogAttrs(context.Background(), slog.LevelWarn, "from a library", slog.String("text", line))
	return len(p), nil
}

// formatHandler writes text or JSON, as the configuration in force says.
type formatHandler struct {
	text, asJSON slog.Handler
	json         *atomic.Bool // shared by all that derive from one
}

func (h *formatHandler) pick() slog.Handler {
	if h.json.Load() {
		return h.asJSON
	}
	return h.text
}

func (h *formatHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return h.pick().Enabled(ctx, l)
}

func (h *formatHandler) Handle(ctx context.Context, r slog.Record) error {
	return h.pick().Handle(ctx, r)
}

func (h *formatHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &formatHandler{h.text.WithAttrs(attrs), h.asJSON.WithAttrs(attrs), h.json}
}

func (h *formatHandler) WithGroup(name string) slog.Handler {
	return &formatHandler{h.text.WithGroup(name), h.asJSON.WithGroup(name), h.json}
}

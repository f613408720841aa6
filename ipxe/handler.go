package ipxe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"recast/inventory"
)

// Handler serves the hand-over by HTTP: scripts, autoexec.ipxe and loaders, at
// the paths named in this package. Everything it serves is public.
type Handler struct {
	Booter  Booter
	Loaders *Loaders // nil serves none
	Library *Library // imported ones; nil serves none
	// Port is where clients reach this handler, for autoexec.ipxe; see Autoexec.
	Port int
	// VLAN is the tag of the Network that an address lies in, 0 for none; nil: none has one.
	VLAN func(netip.Addr) int
	// Tokens finds what a one-time token leads to; an error is not found. Nil knows none.
	Tokens func(ctx context.Context, token string) (Once, error)
	// Turns bounds how many machines fetch the ramdisk at once; nil does not.
	Turns *Turns
	// Observe is told of every script and loader; nil discards.
	Observe func(inventory.Observation)
	Log     *slog.Logger     // nil discards
	Now     func() time.Time // nil is time.Now

	discs discs
}

// Sizes of what a machine may say of itself. SMBIOS strings have at most 64
// bytes in practice; each may arrive as %XX.
const (
	maxQuery  = 1024
	maxSerial = 128
)

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET and HEAD are served here", http.StatusMethodNotAllowed)
		return
	}
	name, isLoader := strings.CutPrefix(r.URL.Path, LoaderPath)
	switch {
	case r.URL.Path == ScriptPath:
		h.script(w, r)
	case r.URL.Path == AutoexecPath || isLoader && path.Base(name) == AutoexecName:
		writeScript(w, h.autoexec(remoteAddr(r)))
	case isLoader:
		h.loader(w, r, name)
	case strings.HasPrefix(r.URL.Path, OncePath):
		h.once(w, r, strings.TrimPrefix(r.URL.Path, OncePath))
	default:
		http.NotFound(w, r)
	}
}

func (h *Handler) autoexec(remote netip.Addr) string {
	vlan := 0
	if h.VLAN != nil {
		vlan = h.VLAN(remote)
	}
	return Autoexec(h.Port, vlan)
}

func (h *Handler) script(w http.ResponseWriter, r *http.Request) {
	if r.URL.RawQuery == "" {
		writeScript(w, Stub())
		return
	}
	h.scriptOf(w, r, "")
}

// scriptOf answers a machine, which came with a one-time token or "".
func (h *Handler) scriptOf(w http.ResponseWriter, r *http.Request, token string) {
	seen := inventory.Observation{Kind: inventory.SawScript, Remote: remoteAddr(r)}
	c, try, err := ParseQuery(r.URL.RawQuery)
	if err != nil {
		seen.Kind, seen.Error = inventory.SawBadPacket, err.Error()
		h.observe(seen)
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c.Remote, c.Token = seen.Remote, token
	seen.MAC, seen.UUID, seen.Client, seen.Arch, seen.Version = c.MAC, c.UUID, string(c.Loader), uint16(c.Arch), version(r)

	start := h.now()
	spec, err := h.Booter.BootSpec(r.Context(), c)
	// An iPXE that DHCP sent here gives up when nothing is found, and its firmware
	// goes on; one that a script of ours sent would ask again.
	if err == nil && spec.Kind == SpecLocal && spec.Local == inventory.LocalHTTP404 && !r.URL.Query().Has("try") {
		seen.Detail = told(spec) + ", as not found"
		h.observe(seen)
		http.Error(w, seen.Detail, http.StatusNotFound)
		return
	}
	if err == nil && spec.Kind == SpecRamdisk {
		if again, waiting, ok := h.Turns.Ask(c.Remote, h.now()); !ok {
			seen.Detail = h.turnDetail(again, waiting)
			writeScript(w, asksBy(token, RenderTurn(spec, again, waiting, try)))
			h.observe(seen)
			return
		}
	}
	text, detail, err := answer(spec, err, c, try)
	text = asksBy(token, text)
	seen.Detail, seen.Bytes = detail, int64(len(text))
	if err != nil {
		seen.Error = err.Error()
		h.log().Warn("no boot script yet", "mac", c.MAC, "remote", c.Remote, "try", try, "error", err)
	}
	if log := h.log(); log.Enabled(r.Context(), slog.LevelDebug) { // its arguments cost as much as the decision
		log.Debug("boot script", "mac", c.MAC, "remote", c.Remote, "try", try, "answer", detail, "trace", spec.Trace)
	}
	writeScript(w, text)
	seen.Took = inventory.Duration(h.now().Sub(start))
	h.observe(seen)
}

// answer renders what the Booter said; there is always a script to give. Its
// error is for the log and the timeline, never for the public script.
func answer(spec Spec, refused error, c Client, try int) (text, detail string, err error) {
	if refused != nil {
		why := "the server is not ready"
		if errors.Is(refused, context.DeadlineExceeded) {
			why = "the server is busy"
		}
		return RenderWait(why, try), "wait", fmt.Errorf("ask for the boot decision: %w", refused)
	}
	text, err = Render(spec, c, try)
	if err != nil {
		return RenderWait("the boot decision cannot be rendered; see the server's log", try), "wait", err
	}
	return text, told(spec), nil
}

// SawWait begins the detail of an observation where a machine's turn has not come.
const SawWait = "not its turn"

func (h *Handler) turnDetail(again time.Duration, waiting int) string {
	return fmt.Sprintf("%s: %d machines fetch the ramdisk and %d more wait; it asks again in %s", SawWait, h.Turns.limit(), waiting, again)
}

// told is a spec for the timeline.
func told(s Spec) string { return strings.TrimSuffix(string(s.Kind)+": "+s.Reason, ": ") }

func (h *Handler) loader(w http.ResponseWriter, r *http.Request, name string) {
	if b, ok := h.Library.Open(name); ok {
		h.serveLoader(w, r, name, b)
		return
	}
	if h.Loaders == nil || !h.Loaders.Have(name) {
		if _, known := loaderPaths[name]; !known {
			http.NotFound(w, r)
			return
		}
		why := fmt.Sprintf("loader %q is missing: %s", name, loaderCure)
		h.observe(inventory.Observation{Kind: inventory.SawFile, Remote: remoteAddr(r), Detail: name, Error: why})
		http.Error(w, why, http.StatusNotFound)
		return
	}
	h.serveLoader(w, r, name, h.Loaders.memFS[name])
}

func (h *Handler) serveLoader(w http.ResponseWriter, r *http.Request, name string, b []byte) {
	w.Header().Set("Content-Type", loaderType(name))
	h.observe(Transfer(w, r, name, func(w http.ResponseWriter, r *http.Request) {
		// edk2 asks HEAD first and needs a Content-Length, which ServeContent sets.
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	}))
}

// ParseQuery reads what a machine said of itself in its script's URL, and how
// many times it has asked in this boot. Remote and Network are the caller's.
func ParseQuery(raw string) (c Client, try int, err error) {
	if len(raw) > maxQuery {
		return c, 0, fmt.Errorf("parse boot query: %d bytes, at most %d are read", len(raw), maxQuery)
	}
	q, err := url.ParseQuery(raw)
	if err != nil {
		return c, 0, fmt.Errorf("parse boot query: %w", err)
	}
	for key, v := range q {
		if len(v) > 1 {
			return c, 0, fmt.Errorf("parse boot query: %q is given %d times", key, len(v))
		}
	}
	c.Loader = LoaderIPXE
	hw, err := net.ParseMAC(q.Get("mac"))
	if err != nil || len(hw) != 6 {
		return c, 0, fmt.Errorf("parse boot query: mac %q: want six pairs of hex digits", q.Get("mac"))
	}
	c.MAC = inventory.MACOf(hw)
	if c.UUID, err = parseUUID(q.Get("uuid")); err != nil {
		return c, 0, fmt.Errorf("parse boot query: %w", err)
	}
	if c.Serial, err = parseSerial(q.Get("serial")); err != nil {
		return c, 0, fmt.Errorf("parse boot query: %w", err)
	}
	// Only the local boot depends on it, and a hand-typed URL may lack it.
	if a := q.Get("arch"); a != "" {
		if c.Arch, err = parseArch(a); err != nil {
			return c, 0, fmt.Errorf("parse boot query: %w", err)
		}
	}
	if t := q.Get("try"); t != "" {
		if try, err = strconv.Atoi(t); err != nil || try < 0 {
			return c, 0, fmt.Errorf("parse boot query: try %q: want a count", t)
		}
		try = min(try, giveUpAfter)
	}
	return c, try, nil
}

// parseUUID accepts the 8-4-4-4-12 form in either case, and none: machines
// without SMBIOS have no UUID.
func parseUUID(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	ok := len(s) == 36
	for i := range len(s) {
		ch := s[i]
		if i == 8 || i == 13 || i == 18 || i == 23 {
			ok = ok && ch == '-'
		} else {
			ok = ok && ('0' <= ch && ch <= '9' || 'a' <= ch && ch <= 'f' || 'A' <= ch && ch <= 'F')
		}
	}
	if !ok {
		return "", fmt.Errorf("uuid %q: want 8-4-4-4-12 hex digits", s)
	}
	return strings.ToLower(s), nil
}

func parseSerial(s string) (string, error) {
	s = strings.TrimSpace(s)
	if len(s) > maxSerial {
		return "", fmt.Errorf("serial of %d bytes, at most %d are read", len(s), maxSerial)
	}
	for _, r := range s {
		if r < ' ' || r == 0x7f {
			return "", fmt.Errorf("serial %q: has a control character", s)
		}
		if r > '~' {
			// A board that was shipped with garbage must boot all the same.
			return "", nil
		}
	}
	return s, nil
}

// remoteAddr is the client's address; a listener that is not IP has none.
func remoteAddr(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

// Of every script: written down once.
var (
	scriptType = []string{"text/plain; charset=utf-8"}
	// The answer changes with the machine's state: no cache may keep it.
	neverCached = []string{"no-store"}
)

func writeScript(w http.ResponseWriter, text string) {
	h := w.Header()
	h["Content-Type"], h["Cache-Control"] = scriptType, neverCached
	h["Content-Length"] = []string{strconv.Itoa(len(text))}
	_, _ = io.WriteString(w, text)
}

func (h *Handler) observe(o inventory.Observation) {
	if h.Observe == nil {
		return
	}
	o.Time = h.now()
	h.Observe(o)
}

func (h *Handler) now() time.Time {
	if h.Now != nil {
		return h.Now()
	}
	return time.Now()
}

func (h *Handler) log() *slog.Logger {
	if h.Log == nil {
		return discard
	}
	return h.Log
}

var discard = slog.New(slog.DiscardHandler)

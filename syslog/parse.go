package syslog

import (
	"bytes"
	"errors"
	"strings"
	"unicode/utf8"
)

// Line is one message as far as it could be understood.
type Line struct {
	Severity int    // 0 emergency … 7 debug (RFC 5424 section 6.2.1)
	App      string // who speaks: ipxe, kernel, recast-agent; "" unknown
	Text     string // clean, on one line, at most maxText bytes
}

const (
	maxDatagram = 2048 // RFC 5424 section 6.1: receivers should take that much
	maxText     = 512
	maxApp      = 48 // RFC 5424 section 6: APP-NAME
)

var (
	errEmpty    = errors.New("empty")
	errPriority = errors.New("bad priority")
)

// Parse reads a datagram by RFC 5424 where it says so, else by RFC 3164, loosely:
// iPXE leaves out the time, others leave out the host, and a message without a
// priority is one too (RFC 3164 section 4.3.3).
func Parse(b []byte) (Line, error) {
	l := Line{Severity: 5} // notice, as RFC 3164 has it
	b = bytes.TrimRight(b[:min(len(b), maxDatagram)], "\x00\r\n ")
	if len(b) > 0 && b[0] == '<' {
		end := bytes.IndexByte(b[:min(len(b), 5)], '>')
		if end < 2 {
			return l, errPriority
		}
		n := 0
		for _, c := range b[1:end] {
			if c < '0' || c > '9' {
				return l, errPriority
			}
			n = n*10 + int(c-'0')
		}
		if n > 191 {
			return l, errPriority
		}
		l.Severity, b = n&7, b[end+1:]
	}
	text := string(b)
	if rest, ok := strings.CutPrefix(text, "1 "); ok {
		l.App, text = modern(rest)
	} else {
		l.App, text = classic(text)
	}
	l.App, l.Text = clean(l.App, maxApp), clean(text, maxText)
	if l.Text == "" {
		return l, errEmpty
	}
	return l, nil
}

// modern reads what follows the version in RFC 5424: TIMESTAMP HOSTNAME APP-NAME
// PROCID MSGID STRUCTURED-DATA MSG.
func modern(s string) (app, text string) {
	var head [5]string
	for i := range head {
		var ok bool
		if head[i], s, ok = strings.Cut(s, " "); !ok {
			return "", strings.Join(head[:i+1], " ")
		}
	}
	if app = head[2]; app == "-" {
		app = ""
	}
	switch {
	case strings.HasPrefix(s, "-"):
		s = s[1:]
	case strings.HasPrefix(s, "["):
		s = s[structured(s):]
	}
	return app, strings.TrimPrefix(strings.TrimPrefix(s, " "), "\ufeff")
}

// structured is the length of the elements in brackets, where quotes hide
// brackets and backslashes hide quotes.
func structured(s string) int {
	inside, quoted := false, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quoted && c == '\\':
			i++
		case c == '"' && inside:
			quoted = !quoted
		case quoted:
		case c == '[' && !inside:
			inside = true
		case c == ']' && inside:
			inside = false
		case !inside:
			return i
		}
	}
	return len(s)
}

// classic reads "Jan _2 15:04:05 host tag[pid]: text" of RFC 3164, of which each
// part but the text may be missing.
func classic(s string) (app, text string) {
	if len(s) > 15 && s[3] == ' ' && s[6] == ' ' && s[9] == ':' && s[12] == ':' && s[15] == ' ' {
		s = s[16:]
	}
	// Netconsole sends the kernel's console as it is, in pieces of lines at times
	// (Documentation/networking/netconsole.rst): "[   12.345678] Kernel panic".
	if at, _, ok := strings.Cut(s, "]"); ok && len(at) > 8 && at[0] == '[' && strings.Trim(at[1:], " .0123456789") == "" {
		return "kernel", s
	}
	first, rest, _ := strings.Cut(s, " ")
	if tag, ok := tagOf(first); ok {
		return tag, rest
	}
	second, rest, _ := strings.Cut(rest, " ")
	if tag, ok := tagOf(second); ok {
		return tag, rest
	}
	return "", s
}

// tagOf is a program's name: "ipxe:", "sshd[812]:".
func tagOf(word string) (string, bool) {
	name, ok := strings.CutSuffix(word, ":")
	name, _, _ = strings.Cut(name, "[")
	if !ok || name == "" || len(name) > maxApp {
		return "", false
	}
	for _, c := range name {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("._/-", c) {
			return "", false
		}
	}
	return name, true
}

// clean keeps a stranger's words harmless on a terminal: escape sequences go
// whole, control characters and broken UTF-8 become spaces.
func clean(s string, most int) string {
	var b strings.Builder
	for len(s) > 0 && b.Len() < most {
		if n := escape(s); n > 0 {
			s = s[n:]
			continue
		}
		r, n := utf8.DecodeRuneInString(s)
		s = s[n:]
		switch {
		case r < ' ', r == utf8.RuneError, r >= 0x7f && r < 0xa0, r >= 0x2028 && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0xfeff:
			b.WriteByte(' ')
		default:
			b.WriteRune(r)
		}
	}
	out := strings.Join(strings.Fields(b.String()), " ")
	if len(out) > most {
		out = strings.TrimRight(strings.ToValidUTF8(out[:most], ""), " ") // the cut may be behind a word
	}
	return out
}

// escape is the length of the terminal control sequence that s begins with
// (ECMA-48 section 5.4): ESC [ parameters, and one final byte. 0: none.
func escape(s string) int {
	if len(s) < 2 || s[0] != 0x1b {
		return 0
	}
	if s[1] != '[' {
		return 2
	}
	for i := 2; i < len(s); i++ {
		if s[i] >= 0x40 && s[i] <= 0x7e {
			return i + 1
		}
		if s[i] < 0x20 || s[i] > 0x7e {
			return i
		}
	}
	return len(s)
}

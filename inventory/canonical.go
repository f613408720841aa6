package inventory

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// Canonical is the RFC 8785 JSON of v (JCS): the one spelling that is hashed.
// A json.RawMessage is taken as JSON text, anything else through its JSON form.
//
// It refuses what has no single spelling: NaN and infinities, text that is not
// Unicode, a name given twice, and a whole number that a double cannot hold.
func Canonical(v any) ([]byte, error) {
	raw, isRaw := v.(json.RawMessage)
	if !isRaw {
		var err error
		if raw, err = json.Marshal(v); err != nil {
			return nil, fmt.Errorf("write canonical JSON: %w", err)
		}
	}
	// json.Marshal writes \ufffd only in place of bytes that are not UTF-8.
	c := canonicalizer{in: raw, refuseReplacement: !isRaw}
	c.space()
	out, err := c.value(make([]byte, 0, len(raw)), 0)
	if err == nil {
		if c.space(); c.pos < len(c.in) {
			err = errors.New("text behind the value")
		}
	}
	if err != nil {
		return nil, fmt.Errorf("write canonical JSON: at byte %d: %w", c.pos, err)
	}
	return out, nil
}

type canonicalizer struct {
	in                []byte
	pos               int
	refuseReplacement bool
}

const maxDepth = 200

func (c *canonicalizer) space() {
	for c.pos < len(c.in) {
		switch c.in[c.pos] {
		case ' ', '\t', '\n', '\r':
			c.pos++
		default:
			return
		}
	}
}

func (c *canonicalizer) peek() byte {
	if c.pos < len(c.in) {
		return c.in[c.pos]
	}
	return 0
}

func (c *canonicalizer) value(out []byte, depth int) ([]byte, error) {
	if depth > maxDepth {
		return nil, errors.New("nested too deep")
	}
	switch b := c.peek(); {
	case b == '{':
		return c.object(out, depth)
	case b == '[':
		return c.array(out, depth)
	case b == '"':
		s, err := c.str()
		if err != nil {
			return nil, err
		}
		return appendString(out, s), nil
	case b == '-' || b >= '0' && b <= '9':
		return c.number(out)
	}
	for _, word := range []string{"true", "false", "null"} {
		if bytes.HasPrefix(c.in[c.pos:], []byte(word)) {
			c.pos += len(word)
			return append(out, word...), nil
		}
	}
	return nil, errors.New("not a JSON value")
}

func (c *canonicalizer) array(out []byte, depth int) ([]byte, error) {
	c.pos++
	out = append(out, '[')
	for n := 0; ; n++ {
		c.space()
		if c.peek() == ']' && n == 0 {
			break
		}
		var err error
		if out, err = c.value(out, depth+1); err != nil {
			return nil, err
		}
		c.space()
		if c.peek() != ',' {
			break
		}
		c.pos++
		out = append(out, ',')
	}
	if c.peek() != ']' {
		return nil, errors.New("want , or ] in an array")
	}
	c.pos++
	return append(out, ']'), nil
}

type member struct {
	name  string
	key   []uint16 // the name in UTF-16, by which RFC 8785 §3.2.3 sorts
	value []byte
}

func (c *canonicalizer) object(out []byte, depth int) ([]byte, error) {
	c.pos++
	var members []member
	for {
		c.space()
		if c.peek() == '}' && len(members) == 0 {
			break
		}
		if c.peek() != '"' {
			return nil, errors.New("want a name in an object")
		}
		name, err := c.str()
		if err != nil {
			return nil, err
		}
		if c.space(); c.peek() != ':' {
			return nil, errors.New("want : after a name")
		}
		c.pos++
		c.space()
		value, err := c.value(nil, depth+1)
		if err != nil {
			return nil, err
		}
		members = append(members, member{name, utf16.Encode([]rune(name)), value})
		if c.space(); c.peek() != ',' {
			break
		}
		c.pos++
	}
	if c.peek() != '}' {
		return nil, errors.New("want , or } in an object")
	}
	c.pos++
	slices.SortFunc(members, func(a, b member) int { return slices.Compare(a.key, b.key) })
	out = append(out, '{')
	for i, m := range members {
		if i > 0 {
			if m.name == members[i-1].name {
				return nil, fmt.Errorf("the name %q is given twice", m.name)
			}
			out = append(out, ',')
		}
		out = append(appendString(out, m.name), ':')
		out = append(out, m.value...)
	}
	return append(out, '}'), nil
}

// number writes a double as ECMAScript does (RFC 8785 §3.2.2.3).
func (c *canonicalizer) number(out []byte) ([]byte, error) {
	start := c.pos
	whole := true
	for c.pos < len(c.in) {
		b := c.in[c.pos]
		if b == '.' || b == 'e' || b == 'E' {
			whole = false
		} else if b != '-' && b != '+' && (b < '0' || b > '9') {
			break
		}
		c.pos++
	}
	literal := c.in[start:c.pos]
	if !json.Valid(literal) {
		return nil, fmt.Errorf("bad number %q", literal)
	}
	f, err := strconv.ParseFloat(string(literal), 64)
	if err != nil || math.IsInf(f, 0) || math.IsNaN(f) {
		return nil, fmt.Errorf("the number %s is too large for a double", literal)
	}
	at := len(out)
	out = appendNumber(out, f)
	// A whole number must come out as it went in; -0 is 0.
	if whole && f != 0 && !bytes.Equal(out[at:], literal) && !exact(literal, f) {
		return nil, fmt.Errorf("the number %s is too precise for a double", literal)
	}
	return out, nil
}

// exact tells whether the whole-number literal is the double f, digit by digit.
func exact(literal []byte, f float64) bool {
	return strconv.FormatFloat(f, 'f', 0, 64) == string(literal)
}

func appendNumber(out []byte, f float64) []byte {
	if f == 0 {
		return append(out, '0') // also for -0
	}
	format := byte('f')
	if abs := math.Abs(f); abs < 1e-6 || abs >= 1e21 {
		format = 'e'
	}
	at := len(out)
	out = strconv.AppendFloat(out, f, format, -1, 64)
	if format == 'e' {
		// ECMAScript writes 1e-7, Go 1e-07.
		if n := len(out); n-at >= 4 && out[n-4] == 'e' && out[n-2] == '0' {
			out[n-2] = out[n-1]
			out = out[:n-1]
		}
	}
	return out
}

// str reads a JSON string, strictly: no lone surrogate, no bad UTF-8.
func (c *canonicalizer) str() (string, error) {
	c.pos++
	start := c.pos
	for c.pos < len(c.in) && c.in[c.pos] != '"' && c.in[c.pos] != '\\' && c.in[c.pos] >= ' ' && c.in[c.pos] < utf8.RuneSelf {
		c.pos++
	}
	if c.peek() == '"' {
		c.pos++
		return string(c.in[start : c.pos-1]), nil
	}
	s := append([]byte(nil), c.in[start:c.pos]...)
	for c.pos < len(c.in) {
		switch b := c.in[c.pos]; {
		case b == '"':
			c.pos++
			return string(s), nil
		case b < ' ':
			return "", errors.New("control character in a string")
		case b >= utf8.RuneSelf:
			r, n := utf8.DecodeRune(c.in[c.pos:])
			if r == utf8.RuneError && n == 1 {
				return "", errors.New("text that is not UTF-8")
			}
			s = append(s, c.in[c.pos:c.pos+n]...)
			c.pos += n
		case b != '\\':
			s = append(s, b)
			c.pos++
		default:
			r, err := c.escape()
			if err != nil {
				return "", err
			}
			s = utf8.AppendRune(s, r)
		}
	}
	return "", errors.New("string without an end")
}

func (c *canonicalizer) escape() (rune, error) {
	if c.pos+1 >= len(c.in) {
		return 0, errors.New("string without an end")
	}
	b := c.in[c.pos+1]
	if i := bytes.IndexByte([]byte(`"\/bfnrt`), b); i >= 0 {
		c.pos += 2
		return rune("\"\\/\b\f\n\r\t"[i]), nil
	}
	if b != 'u' {
		return 0, fmt.Errorf("unknown escape \\%c", b)
	}
	r, err := c.unit()
	if err != nil {
		return 0, err
	}
	if r == utf8.RuneError && c.refuseReplacement {
		return 0, errors.New("text that is not UTF-8")
	}
	if !utf16.IsSurrogate(r) {
		return r, nil
	}
	if c.pos+1 < len(c.in) && c.in[c.pos] == '\\' && c.in[c.pos+1] == 'u' {
		low, err := c.unit()
		if err != nil {
			return 0, err
		}
		if pair := utf16.DecodeRune(r, low); pair != utf8.RuneError {
			return pair, nil
		}
	}
	return 0, errors.New("half a surrogate pair")
}

// unit reads \uXXXX.
func (c *canonicalizer) unit() (rune, error) {
	if c.pos+6 > len(c.in) {
		return 0, errors.New("string without an end")
	}
	v, err := strconv.ParseUint(string(c.in[c.pos+2:c.pos+6]), 16, 16)
	if err != nil {
		return 0, fmt.Errorf("bad escape %q", c.in[c.pos:c.pos+6])
	}
	c.pos += 6
	return rune(v), nil
}

// appendString escapes what RFC 8785 §3.2.2.2 says and nothing else.
func appendString(out []byte, s string) []byte {
	const hexDigits = "0123456789abcdef"
	out = append(out, '"')
	for i := 0; i < len(s); i++ {
		switch b := s[i]; b {
		case '"', '\\':
			out = append(out, '\\', b)
		case '\b':
			out = append(out, '\\', 'b')
		case '\t':
			out = append(out, '\\', 't')
		case '\n':
			out = append(out, '\\', 'n')
		case '\f':
			out = append(out, '\\', 'f')
		case '\r':
			out = append(out, '\\', 'r')
		default:
			if b < ' ' {
				out = append(out, '\\', 'u', '0', '0', hexDigits[b>>4], hexDigits[b&15])
			} else {
				out = append(out, b)
			}
		}
	}
	return append(out, '"')
}

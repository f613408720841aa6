package inventory

import (
	"bytes"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	jsonv1 "github.com/go-json-experiment/json/v1"
)

// Canonical is the RFC 8785 JSON of v (JCS): the one spelling that is hashed.
// A json.RawMessage is taken as JSON text, anything else through its JSON form.
//
// It refuses what has no single spelling: NaN and infinities, text that is not
// Unicode, a name given twice, and a whole number that a double cannot hold.
func Canonical(v any) ([]byte, error) {
	text, isText := v.(stdjson.RawMessage)
	if !isText {
		var err error
		// The forms of encoding/json, except that it would replace what is not Unicode.
		if text, err = json.Marshal(v, jsonv1.DefaultOptionsV1(), jsontext.AllowInvalidUTF8(false)); err != nil {
			return nil, fmt.Errorf("write canonical JSON: %w", err)
		}
	}
	if err := checkNumbers(text); err != nil {
		return nil, fmt.Errorf("write canonical JSON: %w", err)
	}
	out := jsontext.Value(bytes.Clone(text))
	if err := out.Canonicalize(); err != nil {
		return nil, fmt.Errorf("write canonical JSON: %w", err)
	}
	return out, nil
}

// checkNumbers refuses what RFC 8785 would round without a word (§3.2.2.3: every
// number is a double).
func checkNumbers(text []byte) error {
	d := jsontext.NewDecoder(bytes.NewReader(text))
	for {
		token, err := d.ReadToken()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if token.Kind() != '0' {
			continue
		}
		literal := token.String()
		f, err := strconv.ParseFloat(literal, 64)
		if err != nil || math.IsInf(f, 0) {
			return fmt.Errorf("at byte %d: the number %s is too large for a double", d.InputOffset(), literal)
		}
		whole := !strings.ContainsAny(literal, ".eE") && f != 0
		if whole && literal != strconv.FormatFloat(f, 'f', 0, 64) && literal != strconv.FormatFloat(f, 'f', -1, 64) {
			return fmt.Errorf("at byte %d: the number %s is too precise for a double", d.InputOffset(), literal)
		}
	}
}

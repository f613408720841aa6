package bmc

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"

	"recast/inventory"
)

// text is a property that should be a string. Some BMCs send a number, null or
// an object: an odd property must not cost the whole resource.
type text string

func (t *text) UnmarshalJSON(raw []byte) error {
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return err
	}
	switch v := v.(type) {
	case string:
		*t = text(plainText(v))
	case float64, bool:
		*t = text(strings.TrimSpace(string(raw)))
	}
	return nil
}

// number is a property that should be a number. Some BMCs send "16", "16 GiB" or null.
type number float64

func (n *number) UnmarshalJSON(raw []byte) error {
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return err
	}
	switch v := v.(type) {
	case float64:
		*n = number(v)
	case string:
		fields := strings.Fields(v)
		if len(fields) > 0 {
			if f, err := strconv.ParseFloat(fields[0], 64); err == nil && finite(f) { // "NaN" is a number there
				*n = number(f)
			}
		}
	}
	return nil
}

// whole is a count; 0 of what cannot be one.
func (n number) whole() int64 {
	if n < 0 || n > 1<<53 {
		return 0
	}
	return int64(n)
}

// finite reports whether a value can be shown: JSON has no other numbers.
func finite(f float64) bool { return !math.IsNaN(f) && !math.IsInf(f, 0) }

// plainText is a text of a BMC on one line, without what vendors leave where
// nobody filled something in.
func plainText(s string) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f }), " ")
	if inventory.Placeholder(s) {
		return ""
	}
	const most = 200
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "")
	}
	return s
}

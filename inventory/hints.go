package inventory

func (s scope) buildSelect(raw rawSelect) DiskSelect { return DiskSelect{} }

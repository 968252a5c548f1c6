"""From dense layers to experts, and to and from other libraries."""

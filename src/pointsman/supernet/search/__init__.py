"""Search: engines that propose genotypes, and what runs, records and resumes them."""

"""What a person sees: lines and tables, files for papers, pictures, the report and the studio."""
